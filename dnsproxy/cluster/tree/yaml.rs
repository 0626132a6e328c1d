//! YAML through the parser's events.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::{
    ALIASED_OCTETS, ALIASED_VALUES, ANCHORS, DEPTH, DOCUMENTS, Key, Node, OBJECT_VALUES, Place, TEXT_OCTETS, TreeError,
    VALUES, Value,
};

/// The documents of a file but for empty ones.
///
/// # Errors
/// The text is no YAML, or is nested too deep, holds too many values, a key that is no scalar, a merge key, or a tag.
pub fn parse(text: &str) -> Result<Vec<Node>, TreeError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| broken(&error))?;
        builder.take(event, span)?;
    }
    Ok(builder.documents)
}

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    /// How many were begun, empty ones too.
    begun: usize,
    open: Vec<Open>,
    /// Values that an alias may refer to, how many each is, and octets of text in it.
    anchors: HashMap<usize, (Node, usize, usize)>,
    values: usize,
    /// How many there were before the object that is being read.
    before_object: usize,
    aliased: usize,
    aliased_octets: usize,
}

/// A list or map that has not ended yet.
struct Open {
    at: Place,
    anchor: usize,
    /// How many values there were before it.
    before: usize,
    value: Value,
    /// A map's key whose value comes next.
    key: Option<Key>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), TreeError> {
        let at = place(span);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.anchors.clear();
                self.before_object = self.values;
                self.begun += 1;
                if self.begun > DOCUMENTS {
                    return Err(error(at, format!("more than {DOCUMENTS} documents in one file")));
                }
                Ok(())
            }
            Event::DocumentEnd => Ok(()),
            Event::Alias(anchor) => {
                let Some((node, values, octets)) = self.anchors.get(&anchor) else {
                    return Err(error(at, "an alias inside the value that it names; only earlier values can be named"));
                };
                let values = *values;
                self.aliased += values;
                if self.aliased > ALIASED_VALUES {
                    let text =
                        format!("aliases stand for {} values so far; the limit is {ALIASED_VALUES}", self.aliased);
                    return Err(error(at, text));
                }
                self.aliased_octets += octets;
                if self.aliased_octets > ALIASED_OCTETS {
                    let octets = self.aliased_octets;
                    let text =
                        format!("aliases stand for {octets} octets of text so far; the limit is {ALIASED_OCTETS}");
                    return Err(error(at, text));
                }
                let node = Node { at, value: node.value.clone() };
                self.count(at, values)?;
                self.add(node)
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(at, 1)?;
                if text.len() > TEXT_OCTETS {
                    return Err(error(at, format!("text of {} octets; the limit is {TEXT_OCTETS}", text.len())));
                }
                let value = match tag {
                    None if style == ScalarStyle::Plain => plain(&text),
                    None => Value::Text(text.as_ref().into()),
                    Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => Value::Text(text.as_ref().into()),
                    Some(tag) => {
                        return Err(error(at, format!("tag {:.80}; no tag but !!str is allowed", tag.to_string())));
                    }
                };
                let node = Node { at, value };
                self.remember(anchor, &node, 1)?;
                self.add(node)
            }
            Event::SequenceStart(anchor, tag) => self.open(at, anchor, Value::List(Vec::new()), tag.is_some()),
            Event::MappingStart(anchor, tag) => self.open(at, anchor, Value::Map(Vec::new()), tag.is_some()),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                let at = match &open.value {
                    // A block map's own span may be empty: it starts where its first key does.
                    Value::Map(entries) => entries.first().map_or(open.at, |(key, _)| key.at.min(open.at)),
                    _ => open.at,
                };
                let node = Node { at, value: open.value };
                self.remember(open.anchor, &node, self.values - open.before)?;
                self.add(node)
            }
        }
    }

    fn open(&mut self, at: Place, anchor: usize, value: Value, tagged: bool) -> Result<(), TreeError> {
        if tagged {
            return Err(error(at, "a tag on a list or map; none is allowed"));
        }
        if self.open.len() == DEPTH {
            return Err(error(at, format!("nested deeper than {DEPTH} levels")));
        }
        if self.open.last().is_some_and(|open| matches!(open.value, Value::Map(_)) && open.key.is_none()) {
            return Err(error(at, "a list or map as a key; only text is allowed"));
        }
        let before = self.values;
        self.count(at, 1)?;
        self.open.push(Open { at, anchor, before, value, key: None });
        Ok(())
    }

    fn add(&mut self, node: Node) -> Result<(), TreeError> {
        let Some(open) = self.open.last_mut() else {
            if node.value != Value::Null {
                self.documents.push(node);
            }
            return Ok(());
        };
        match &mut open.value {
            Value::List(items) => items.push(node),
            Value::Map(entries) => match open.key.take() {
                Some(key) => entries.push((key, node)),
                None => open.key = Some(key(node)?),
            },
            _ => {}
        }
        Ok(())
    }

    fn remember(&mut self, anchor: usize, node: &Node, values: usize) -> Result<(), TreeError> {
        if anchor > 0 && values <= ALIASED_VALUES {
            // A large value that nobody can afford to name needn't be kept twice: its first alias is refused.
            let octets = text_octets(&node.value);
            let kept = if octets <= ALIASED_OCTETS { node.clone() } else { Node { at: node.at, value: Value::Null } };
            self.anchors.insert(anchor, (kept, values, octets));
        }
        if self.anchors.len() > ANCHORS {
            return Err(error(node.at, format!("more than {ANCHORS} anchors in one document")));
        }
        Ok(())
    }

    fn count(&mut self, at: Place, values: usize) -> Result<(), TreeError> {
        if let [Open { key: Some(key), .. }, Open { value: Value::List(_), .. }] = self.open.as_slice()
            && &*key.text == "items"
        {
            self.before_object = self.values;
        }
        self.values += values;
        if self.values - self.before_object > OBJECT_VALUES {
            return Err(error(at, format!("more than {OBJECT_VALUES} values in one object")));
        }
        if self.values > VALUES {
            return Err(error(at, format!("more than {VALUES} values in one file")));
        }
        Ok(())
    }
}

fn key(node: Node) -> Result<Key, TreeError> {
    let ambiguous = matches!(node.value, Value::Ambiguous(_));
    let text: Box<str> = match node.value {
        Value::Text(text) | Value::Number(text) | Value::Ambiguous(text) => text,
        Value::Bool(value) => value.to_string().into(),
        Value::Null => "null".into(),
        Value::List(_) | Value::Map(_) => return Err(error(node.at, "a list or map as a key; only text is allowed")),
    };
    if &*text == "<<" {
        return Err(error(node.at, "merge key <<; write the keys out"));
    }
    Ok(Key { at: node.at, text, ambiguous })
}

/// Octets of text in a value, keys included.
fn text_octets(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 0,
        Value::Number(text) | Value::Ambiguous(text) | Value::Text(text) => text.len(),
        Value::List(items) => items.iter().map(|item| text_octets(&item.value)).sum(),
        Value::Map(entries) => entries.iter().map(|(key, item)| key.text.len() + text_octets(&item.value)).sum(),
    }
}

/// What a scalar without quotes is to Kubernetes' tools, which read YAML 1.1.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Value::Ambiguous(text.into()),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Value::Ambiguous(text.into()),
        _ if is_number(text) => Value::Number(text.into()),
        _ => Value::Text(text.into()),
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(digits, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    for (prefix, known) in [("0x", "0123456789abcdefABCDEF_"), ("0o", "01234567_"), ("0b", "01_")] {
        if let Some(rest) = digits.strip_prefix(prefix) {
            return !rest.is_empty() && rest.chars().all(|digit| known.contains(digit));
        }
    }
    let (mantissa, exponent) = digits.split_once(['e', 'E']).map_or((digits, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all_digits = |part: &str| part.bytes().all(|octet| octet.is_ascii_digit() || octet == b'_');
    let exponent_good = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !exponent.is_empty() && all_digits(exponent)
    });
    let some = mantissa.bytes().any(|octet| octet.is_ascii_digit()) && !mantissa.starts_with('_');
    some && all_digits(whole) && all_digits(fraction) && exponent_good
}

fn place(span: Span) -> Place {
    Place { line: span.start.line() as u32, column: span.start.col() as u32 + 1 }
}

fn error(at: Place, text: impl Into<String>) -> TreeError {
    TreeError { at, text: text.into() }
}

fn broken(error: &ScanError) -> TreeError {
    let marker = error.marker();
    let at = Place { line: marker.line() as u32, column: marker.col() as u32 + 1 };
    TreeError { at, text: format!("not YAML: {}", error.info()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn refused(text: &str, why: &str) {
        assert_eq!(parse(text).unwrap_err().to_string(), why);
    }

    #[track_caller]
    fn scalar(text: &str, value: Value) {
        assert_eq!(parse(&format!("- {text}\n")).unwrap()[0].value, Value::List(vec![Node { at: at(1, 3), value }]));
    }

    fn at(line: u32, column: u32) -> Place {
        Place { line, column }
    }

    #[test]
    fn keys_and_values_know_their_places() {
        let documents =
            parse("# comment\nkind: Pod\nspec:\n  list:\n  - a: 1\n    b: \"x\"\n  flow: {c: [1, 2]}\n").unwrap();
        let pod = &documents[0];
        assert_eq!(pod.at, at(2, 1));
        let Value::Map(entries) = &pod.value else { panic!() };
        assert_eq!((entries[1].0.at, &*entries[1].0.text), (at(3, 1), "spec"));
        let spec = pod.get("spec").unwrap();
        assert_eq!(spec.at, at(4, 3));
        let Value::List(items) = &spec.get("list").unwrap().value else { panic!() };
        assert_eq!(items[0].at, at(5, 5));
        assert_eq!(items[0].get("b").unwrap().at, at(6, 8));
        assert_eq!(spec.get("flow").unwrap().at, at(7, 9));
        assert_eq!(spec.get("flow").unwrap().get("c").unwrap().at, at(7, 13));
    }

    #[test]
    fn several_documents_and_empty_ones() {
        let documents = parse("---\na: 1\n---\n---\nb: 2\n...\n").unwrap();
        assert_eq!(documents.len(), 2, "the empty one is none");
        assert_eq!(parse("# nothing\n").unwrap(), []);
        assert_eq!(parse("\u{feff}a: 1\n").unwrap()[0].at, at(1, 1));
    }

    #[test]
    fn scalars_without_quotes_are_what_kubernetes_takes_them_for() {
        for (text, number) in [("53", true), ("0x50", true), ("1e3", true), (".5", true), ("-1", true), ("1_000", true)]
            .into_iter()
            .chain([("1.2.3", false), ("2026-11-21", false), ("v1", false), ("e3", false), ("10.0.0.0/8", false)])
        {
            scalar(text, if number { Value::Number(text.into()) } else { Value::Text(text.into()) });
            scalar(&format!("\"{text}\""), Value::Text(text.into()));
        }
        scalar("true", Value::Bool(true));
        for text in ["yes", "y", "Y", "n", "N", "off"] {
            scalar(text, Value::Ambiguous(text.into()));
        }
        scalar("ye", Value::Text("ye".into()));
        scalar("'yes'", Value::Text("yes".into()));
        scalar("~", Value::Null);
        scalar("!!str 53", Value::Text("53".into()));
    }

    #[test]
    fn an_alias_is_a_copy_with_its_own_place() {
        let documents = parse("a: &x {k: v}\nb: *x\n").unwrap();
        let b = documents[0].get("b").unwrap();
        assert_eq!((b.at, b.get("k").unwrap().as_text()), (at(2, 4), Some("v")));
    }

    #[test]
    fn a_long_text_is_not_multiplied_by_aliases() {
        let long = "x".repeat(ALIASED_OCTETS / 2);
        let stand_for = |octets| format!("aliases stand for {octets} octets of text so far; the limit is 262144");
        assert_eq!(parse(&format!("a: &x {long}\nb: [*x, *x]\n")).map(|found| found.len()), Ok(1));
        refused(&format!("a: &x {long}\nb: [*x, *x, *x]\n"), &format!("2:13: {}", stand_for(393_216)));
        refused(&format!("a: &x {long}{long}y\nb: *x\n"), &format!("2:4: {}", stand_for(262_145)));
        refused(&format!("a: &x [{long}, {{y: {long}}}]\nb: *x\n"), &format!("2:4: {}", stand_for(262_145)));
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = level - 1;
            let row = vec![format!("*a{below}"); 9].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{row}]\n"));
        }
        let error = parse(&text).unwrap_err();
        assert!(error.text.contains("the limit is 20000"), "{error}");
    }

    #[test]
    fn what_is_no_tree_is_refused_with_its_place() {
        refused("a: &x [*x]\n", "1:8: an alias inside the value that it names; only earlier values can be named");
        refused("a: 1\n<<: {b: 2}\n", "2:1: merge key <<; write the keys out");
        refused("a: !!binary aGk=\n", "1:4: tag tag:yaml.org,2002:!binary; no tag but !!str is allowed");
        refused("? [a]\n: b\n", "1:3: a list or map as a key; only text is allowed");
        refused(&"[".repeat(101), "1:101: nested deeper than 100 levels");
        assert!(parse("a: [1\n").unwrap_err().text.starts_with("not YAML: "));
        assert!(parse("a: 1\n b: 2\n").unwrap_err().text.starts_with("not YAML: "));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-a:{}\\[\\],&*!|>\"' \n#?%~0.]{0,60}") {
            let _ = parse(&text);
        }
    }
}
