//! Where values come from: a file, the environment, flags; the later over the earlier. And what is wrong with them, with its place.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use ::config::{FileFormat, Value, ValueKind};
use toml_edit::{Document, Item, TableLike};

use super::{Config, KEYS, read};
use crate::observe::text::clean;

/// The file that is read when no `--config` names one; it may be absent.
pub const DEFAULT_PATH: &str = "/etc/namegate/namegate.toml";

/// Everything that a configuration is made from. Kept for the life of the process: SIGHUP loads it again.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file that was asked for; it must be there.
    path: Option<PathBuf>,
    /// The file that may be there.
    fallback: Option<PathBuf>,
    environment: BTreeMap<String, String>,
    flags: Vec<Flag>,
    /// What the cluster's own configuration says: everything else stands above it.
    cluster: Vec<(&'static str, String)>,
}

/// A value from the command line.
#[derive(Clone, Debug)]
struct Flag {
    key: String,
    name: String,
    value: Value,
}

/// Where a value stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// In a file; line and column from 1, the column in characters.
    File {
        /// As it was given.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// In a variable.
    Variable(String),
    /// In a flag.
    Flag(String),
    /// Nowhere: it is the default.
    Default,
}

/// One thing that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: {doing}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is no TOML.
    #[error("{place}: {}", clean(what))]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser found.
        what: String,
    },
    /// There is no such setting.
    #[error("{place}: {}no such setting{}", said(place, key), near.as_ref().map_or_else(String::new, |near| format!("; did you mean {near}")))]
    Unknown {
        /// Where.
        place: Place,
        /// What was written.
        key: String,
        /// What comes nearest.
        near: Option<String>,
    },
    /// The value can't be.
    #[error("{place}: {}: found {found}; allowed is {allowed}", clean(key))]
    Value {
        /// Where.
        place: Place,
        /// The setting.
        key: String,
        /// What was found.
        found: String,
        /// What may be there.
        allowed: String,
    },
}

/// All that is wrong with a configuration, in the order of the settings; one a line.
#[derive(Debug, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl Source {
    /// The environment of this process and `path`, or the default file if there is one.
    pub fn of_process(path: Option<PathBuf>) -> Source {
        // Names and values that are not UTF-8 are nobody's setting.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| FROM_KUBERNETES.iter().any(|from| from.0 == name) || name.starts_with("NAMEGATE_"))
            .collect();
        Source { path, fallback: Some(PathBuf::from(DEFAULT_PATH)), environment, ..Source::default() }
    }

    /// No file, no environment.
    pub fn nothing() -> Source {
        Source::default()
    }

    /// Only this file, which must be there.
    pub fn of_file(path: impl Into<PathBuf>) -> Source {
        Source { path: Some(path.into()), ..Source::default() }
    }

    /// Only this file, which may be absent.
    pub fn of_file_if_there(path: impl Into<PathBuf>) -> Source {
        Source { fallback: Some(path.into()), ..Source::default() }
    }

    /// The same with a variable set.
    pub fn with_variable(mut self, name: &str, value: &str) -> Source {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The same with `key` set from the command line; `name` is the flag as it was typed.
    pub fn with_flag(mut self, key: &str, name: &str, value: impl Into<String>) -> Source {
        let value = Value::from(value.into());
        self.flags.push(Flag { key: key.to_owned(), name: name.to_owned(), value });
        self
    }

    /// The same with what the cluster's configuration says, where nothing else says it. Every value must be one that the
    /// setting may have: [`super::cilium::read`] checks it.
    pub fn with_cluster(mut self, values: Vec<(&'static str, String)>) -> Source {
        self.cluster = values;
        self
    }

    /// The same with the list `key` set from the command line.
    pub fn with_flags(mut self, key: &str, name: &str, values: &[String]) -> Source {
        let value = Value::from(values.to_vec());
        self.flags.push(Flag { key: key.to_owned(), name: name.to_owned(), value });
        self
    }

    /// The file that is read, if there is one.
    pub fn file(&self) -> Option<&Path> {
        self.path.as_deref().or(self.fallback.as_deref().filter(|path| path.exists()))
    }

    /// Reads and merges everything anew.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        let mut errors = Vec::new();
        let mut origins = Origins::default();
        let mut builder = ::config::Config::builder();
        for (key, value) in &self.cluster {
            builder = builder.set_default(key, value.as_str()).expect("every key of the list is a path");
        }
        if let Some((path, text)) = self.read_file().map_err(|error| ConfigErrors(vec![error]))? {
            match Document::parse(text.as_str()) {
                Ok(document) => {
                    Walk { path: &path, text: &text, origins: &mut origins, errors: &mut errors }
                        .root(document.as_table());
                    builder = builder.add_source(::config::File::from_str(&text, FileFormat::Toml));
                }
                Err(error) => {
                    let at = error.span().map_or(0, |span| span.start);
                    let what = error.message().lines().collect::<Vec<_>>().join(", ");
                    return Err(ConfigErrors(vec![ConfigError::Syntax { place: place_at(&path, &text, at), what }]));
                }
            }
        }
        if !errors.is_empty() {
            return Err(ConfigErrors(errors)); // what is not in the list can't be merged with what is
        }
        for (key, place, value) in self.overrides(&mut errors) {
            origins.forget(&key);
            origins.0.insert(key.clone(), place);
            builder = builder.set_override(key, value).expect("every key of the list is a path");
        }
        let merged = builder.build().expect("the file was parsed before, and the rest are plain values");
        let (config, mut wrong) = read::config(&merged.cache, &origins);
        errors.append(&mut wrong);
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }

    /// The file's path and text, if there is one.
    fn read_file(&self) -> Result<Option<(PathBuf, String)>, ConfigError> {
        let (path, must) = match (&self.path, &self.fallback) {
            (Some(path), _) => (path, true),
            (None, Some(path)) => (path, false),
            (None, None) => return Ok(None),
        };
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some((path.clone(), text))),
            Err(error) if !must && error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ConfigError::Read { path: path.clone(), doing: "reading the configuration", source }),
        }
    }

    /// What the environment and the flags set, in the order in which they count.
    fn overrides(&self, errors: &mut Vec<ConfigError>) -> Vec<(String, Place, Value)> {
        let mut found = Vec::new();
        // What the downward API sets in a pod; namegate's own variable and the flag stand above it.
        for (name, key) in FROM_KUBERNETES {
            if let Some(text) = self.environment.get(name).filter(|text| !text.is_empty()) {
                found.push((key.to_owned(), Place::Variable(name.to_owned()), Value::from(text.as_str())));
            }
        }
        for (name, text) in self.environment.iter().filter(|(name, _)| name.starts_with("NAMEGATE_")) {
            if name == "NAMEGATE_CONFIG" || is_service_link(name, text) {
                continue; // the first names the file and is read with the command line
            }
            let place = Place::Variable(name.clone());
            match KEYS.iter().find(|key| key.variable().as_deref() == Some(name)) {
                Some(key) => found.push((key.name.to_owned(), place, Value::from(text.as_str()))),
                None => {
                    let near = nearest(name, KEYS.iter().filter_map(super::Key::variable));
                    errors.push(ConfigError::Unknown { place, key: name.clone(), near });
                }
            }
        }
        for flag in &self.flags {
            let place = Place::Flag(flag.name.clone());
            match KEYS.iter().find(|key| key.name == flag.key && key.variable().is_some()) {
                Some(_) => found.push((flag.key.clone(), place, flag.value.clone())),
                None => errors.push(ConfigError::Unknown { place, key: flag.key.clone(), near: near_key(&flag.key) }),
            }
        }
        found
    }
}

/// Variables that a pod's spec takes from the downward API, and what they set.
const FROM_KUBERNETES: [(&str, &str); 3] =
    [("NODE_NAME", "node_name"), ("POD_IPS", "sidecar.addresses"), ("SERVICE_ACCOUNT", "sidecar.service_account")];

/// Kubernetes gives every container variables for the Services of its namespace, as `docker --link` did: a Service
/// named `namegate-dns` sets NAMEGATE_DNS_PORT=tcp://… . They are nobody's setting.
fn is_service_link(name: &str, value: &str) -> bool {
    let address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let known = KEYS.iter().any(|key| key.variable().as_deref() == Some(name));
    let link = |name: &str| {
        let Some((_, rest)) = name.split_once("_PORT_") else {
            return name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT");
        };
        name.contains("_SERVICE_PORT_") || rest.starts_with(|first: char| first.is_ascii_digit())
    };
    address || (!known && link(name))
}

/// Where each value stands, by its path (`dns.resolvers[1]`).
#[derive(Default)]
pub(super) struct Origins(BTreeMap<String, Place>);

impl Origins {
    /// The place of the value at `path`, or of the nearest value that holds it.
    pub(super) fn place(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some(place) = self.0.get(path) {
                return place.clone();
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return Place::Default,
            }
        }
    }

    /// Drops what was known about `key`, because another source replaces it as a whole.
    fn forget(&mut self, key: &str) {
        self.0.retain(|path, _| {
            path.strip_prefix(key).is_none_or(|rest| !rest.is_empty() && !rest.starts_with(['.', '[']))
        });
    }
}

/// Walks a parsed file: notes the place of every value, and finds what is no setting.
struct Walk<'a> {
    path: &'a Path,
    text: &'a str,
    origins: &'a mut Origins,
    errors: &'a mut Vec<ConfigError>,
}

impl Walk<'_> {
    fn root(&mut self, table: &dyn TableLike) {
        self.section("", table);
    }

    /// `prefix` is empty or ends in a dot.
    fn section(&mut self, prefix: &str, table: &dyn TableLike) {
        for (name, item) in table.iter() {
            let path = format!("{prefix}{name}");
            let below = format!("{path}.");
            let at = table.key(name).and_then(toml_edit::Key::span).map_or(0, |span| span.start);
            if name.contains('.') {
                // The merging takes it for several names at the top of the file, and for one that is none of ours below.
                let (found, allowed) = (format!("the one name {name:?}"), "names without dots in quotes".to_owned());
                self.errors.push(ConfigError::Value { place: self.place(at), key: path, found, allowed });
            } else if KEYS.iter().any(|key| key.name == path) {
                self.value(&path, item);
            } else if !KEYS.iter().any(|key| key.name.starts_with(&below)) {
                let near = near_key(&path);
                self.errors.push(ConfigError::Unknown { place: self.place(at), key: path, near });
            } else if let Some(table) = item.as_table_like() {
                self.section(&below, table);
            } else {
                let (found, allowed) = (item.type_name().to_owned(), format!("a section, [{path}]"));
                self.errors.push(ConfigError::Value { place: self.place(at), key: path, found, allowed });
            }
        }
    }

    fn value(&mut self, path: &str, item: &Item) {
        self.note(path, item.span());
        if let Some(tables) = item.as_array_of_tables() {
            for (index, table) in tables.iter().enumerate() {
                self.note(&format!("{path}[{index}]"), table.span());
                self.fields(&format!("{path}[{index}]"), table);
            }
        } else if let Some(values) = item.as_array() {
            for (index, value) in values.iter().enumerate() {
                self.note(&format!("{path}[{index}]"), value.span());
                if let Some(table) = value.as_inline_table() {
                    self.fields(&format!("{path}[{index}]"), table);
                }
            }
        } else if let Some(table) = item.as_table_like() {
            self.fields(path, table);
        }
    }

    fn fields(&mut self, path: &str, table: &dyn TableLike) {
        for (name, item) in table.iter() {
            let field = format!("{path}.{name}");
            self.value(&field, item);
            if path.starts_with("endpoint[") && !["interface", "pod", "mac"].contains(&name) {
                let at = table.key(name).and_then(toml_edit::Key::span).map_or(0, |span| span.start);
                self.errors.push(ConfigError::Unknown { place: self.place(at), key: field, near: None });
            }
        }
    }

    fn note(&mut self, path: &str, span: Option<std::ops::Range<usize>>) {
        if let Some(span) = span {
            self.origins.0.insert(path.to_owned(), self.place(span.start));
        }
    }

    fn place(&self, at: usize) -> Place {
        place_at(self.path, self.text, at)
    }
}

fn place_at(path: &Path, text: &str, at: usize) -> Place {
    let before = text.get(..at).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    let line = before.matches('\n').count() + 1;
    Place::File { path: path.to_owned(), line, column: before[start..].chars().count() + 1 }
}

/// The setting that `key` may have been meant to be.
fn near_key(key: &str) -> Option<String> {
    // A key in the wrong section is as common as a misspelt one.
    fn last(name: &str) -> &str {
        name.rsplit_once('.').map_or(name, |(_, last)| last)
    }
    let names = || KEYS.iter().map(|key| key.name);
    names().find(|name| last(name) == last(key)).map(str::to_owned).or_else(|| nearest(key, names()))
}

/// The candidate that is at most two edits away from `text`.
fn nearest(text: &str, candidates: impl Iterator<Item = impl AsRef<str> + Ord + Into<String>>) -> Option<String> {
    candidates
        .filter(|name| name.as_ref().len().abs_diff(text.len()) <= 2 * size_of::<char>())
        .map(|name| (strsim::levenshtein(text, name.as_ref()), name))
        .filter(|(edits, _)| *edits <= 2)
        .min()
        .map(|(_, name)| name.into())
}

/// The key, unless the place is its name already.
fn said(place: &Place, key: &str) -> String {
    match place {
        Place::Variable(name) if name == key => String::new(),
        _ => format!("{}: ", clean(key)),
    }
}

/// What a value is, in words, for an error.
pub(super) fn describe(value: &Value) -> String {
    match &value.kind {
        ValueKind::Nil => "nothing".to_owned(),
        ValueKind::Boolean(value) => value.to_string(),
        ValueKind::Float(value) => value.to_string(),
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        number => number.to_string(),
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Place::Variable(name) | Place::Flag(name) => f.write_str(&clean(name)),
            Place::Default => f.write_str("default"),
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
            let mut cause = std::error::Error::source(error);
            while let Some(source) = cause {
                write!(f, ": {source}")?;
                cause = source.source();
            }
        }
        Ok(())
    }
}
