//! `namegate explain`: may this workload reach that, and by which rule?

pub(super) mod text;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::node::CommonArgs;
use super::offline::Offline;
use super::{FAILED, Form, USAGE, complain, print, usage};
use crate::config::{Config, Source};
use crate::engine::explain::answer::Answer;
use crate::engine::explain::question::{Asked, Asker, Like};
use crate::operate::client;
use crate::operate::explain::PolicyAsked;

/// What `namegate explain` takes.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Who asks
    #[arg(long, value_name = "NAMESPACE/POD", required_unless_present_any = ["labels", "batch"])]
    from: Option<String>,
    /// Who asks, by labels: a pod with these, whether there is one or not
    #[arg(long, value_name = "KEY=VALUE,…", value_delimiter = ',', value_parser = label, conflicts_with = "from")]
    labels: Vec<(String, String)>,
    /// The namespace of --labels
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// For what: a name, an address, or a pod
    #[arg(long, value_name = "NAME|IP|NAMESPACE/POD", required_unless_present = "batch")]
    to: Option<String>,
    /// On which port, as 443/TCP, or with which type of ICMP, as 8/ICMP [default: any]
    #[arg(long, value_name = "PORT/PROTOCOL")]
    port: Option<String>,
    /// The type of record that is asked for, with a name [default: A]
    #[arg(long, value_name = "TYPE")]
    qtype: Option<String>,
    /// The DNS server that is asked [default: the cluster's]
    #[arg(long, value_name = "IP")]
    resolver: Option<std::net::IpAddr>,
    /// Ask this directory of Kubernetes objects instead of the running namegate
    #[arg(long, value_name = "DIR")]
    snapshot: Option<PathBuf>,
    /// Many questions, a line of JSON each: {"from": "ns/pod", "to": "api.example.com", "port": "443/TCP"}; a line of JSON each
    /// comes back
    #[arg(long, value_name = "FILE|-", conflicts_with_all = ["from", "labels", "to", "port", "qtype", "resolver"])]
    batch: Option<PathBuf>,
    /// How to print it; a batch is always JSON [default: text]
    #[arg(short, long, value_enum)]
    output: Option<Form>,
}

const AFTER_HELP: &str = "\
Without --snapshot the running namegate is asked, which knows what was learned and for how long.

A line of --batch has from (\"namespace/pod\", or {\"namespace\": …, \"labels\": {…}}), to, and optionally port, qtype, resolver
and id; the answer has the same id.

Exit codes:
  0  allowed; with --batch: all of them
  1  denied, or the question has no answer
  2  the command line or the configuration is wrong";

impl ExplainArgs {
    pub(super) fn run(self) -> ExitCode {
        let config = match self.common.source().load() {
            Ok(config) => config,
            Err(errors) => return usage(&errors),
        };
        if self.batch.is_some() && self.output == Some(Form::Text) {
            complain("--output text of a batch; allowed is json, a line an answer");
            return ExitCode::from(USAGE);
        }
        let asked = match &self.batch {
            Some(file) => read_lines(file),
            None => self.asked().map(|asked| vec![Ok(asked)]),
        };
        let source = self.common.source();
        let answers = asked.and_then(|asked| answers(&config, &source, self.snapshot.as_deref(), &asked));
        let answers = match answers {
            Ok(answers) => answers,
            Err(why) => {
                complain(&why);
                return ExitCode::from(USAGE);
            }
        };
        let allowed = answers.iter().all(|answer| answer.as_ref().is_ok_and(|answer| answer.allowed));
        let printed = if self.batch.is_some() {
            print(lines(&answers).as_bytes())
        } else {
            match &answers[0] {
                Ok(answer) if self.output.unwrap_or_default() == Form::Text => print(text::text(answer).as_bytes()),
                Ok(answer) => print(format!("{:#}\n", serde_json::json!(answer)).as_bytes()),
                Err(why) => {
                    complain(why);
                    return ExitCode::from(FAILED);
                }
            }
        };
        if allowed { printed } else { ExitCode::from(FAILED) }
    }

    fn asked(&self) -> Result<Asked, String> {
        let like = || Like {
            namespace: self.namespace.clone(),
            labels: self.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
            service_account: None,
        };
        let asked = Asked {
            id: None,
            from: self.from.clone().map_or_else(|| Asker::Like(like()), Asker::Pod),
            to: self.to.clone().unwrap_or_default(),
            port: self.port.clone(),
            qtype: self.qtype.clone(),
            resolver: self.resolver,
        };
        let nobody = crate::engine::endpoint::PodRef { namespace: String::new(), name: String::new() };
        asked.typed(nobody)?; // what is wrong with it is a matter of the command line
        if let Asker::Pod(text) = &asked.from {
            crate::engine::explain::question::pod(text)?;
        }
        Ok(asked)
    }
}

/// Answers in the order of the questions.
///
/// # Errors
/// Nobody could be asked at all.
fn answers(
    config: &Config,
    source: &Source,
    snapshot: Option<&Path>,
    asked: &[Result<Asked, String>],
) -> Result<Vec<Result<Answer, String>>, String> {
    if let Some(dir) = snapshot {
        return Ok(Offline::read(dir, source)?.answer(asked));
    }
    let socket = config.admin_socket();
    let answers = asked.iter().map(|asked| {
        let page = PolicyAsked::Explain(Box::new(asked.clone()?)).to_page();
        let answer = client::get(&socket, &page, Duration::from_secs(30))
            .map_err(|error| format!("{:#}; --snapshot DIR asks a directory", anyhow::Error::new(error)))?;
        if answer.status != 200 {
            return Err(answer.body.trim_end().to_owned());
        }
        serde_json::from_str(&answer.body).map_err(|error| format!("reading namegate's answer: {error}"))
    });
    Ok(answers.collect())
}

/// The questions of a batch; one that can't be read is an answer too.
fn read_lines(file: &Path) -> Result<Vec<Result<Asked, String>>, String> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|read| text = read)
    };
    read.map_err(|error| format!("{}: {error}", file.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let question = |(at, line): (usize, &str)| {
        serde_json::from_str::<Asked>(line).map_err(|error| format!("{}:{}: {error}", file.display(), at + 1))
    };
    Ok(lines.map(question).collect())
}

fn lines(answers: &[Result<Answer, String>]) -> String {
    let mut text = String::new();
    for answer in answers {
        let line = match answer {
            Ok(answer) => serde_json::to_string(answer).expect("an answer has no map keys that are no strings"),
            Err(why) => serde_json::json!({ "allowed": false, "error": why }).to_string(),
        };
        let _ = writeln!(text, "{line}");
    }
    text
}

pub(super) fn label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("allowed is KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}
