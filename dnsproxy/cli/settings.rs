//! `namegate settings`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::table::Table;
use super::{Output, print};
use crate::config::{KEYS, Takes, ranges};

/// What `namegate settings` takes.
#[derive(Args, Debug)]
pub(super) struct SettingsArgs {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl SettingsArgs {
    pub(super) fn run(self) -> ExitCode {
        print(
            match self.output {
                Output::Table => table(),
                Output::Json => json(),
            }
            .as_bytes(),
        )
    }
}

/// Name, default, what is allowed, and when a change takes effect.
pub(super) fn rows() -> Vec<[String; 5]> {
    let ranges = ranges();
    let row = |key: &crate::config::Key| {
        let range = ranges.iter().find(|range| range.key == key.name).expect("every setting is read");
        let default = match key.name {
            "node_name" => "the host's name".to_owned(), // of the machine where it runs, not of this one
            _ => range.default.clone(),
        };
        let takes = match key.takes {
            Takes::Reload => "reload",
            Takes::Restart => "restart",
        };
        [key.name.to_owned(), default, range.allowed.clone(), key.variable().unwrap_or_default(), takes.to_owned()]
    };
    KEYS.iter().map(row).collect()
}

fn table() -> String {
    let mut table = Table::new(&["SETTING", "DEFAULT", "ALLOWED", "VARIABLE", "TAKES"]);
    rows().into_iter().for_each(|row| table.row(row));
    table.text()
}

fn json() -> String {
    let object = |[setting, default, allowed, variable, takes]: [String; 5]| json!({ "setting": setting, "default": default, "allowed": allowed, "variable": variable, "takes": takes });
    let rows: Vec<_> = rows().into_iter().map(object).collect();
    format!("{:#}\n", json!(rows))
}
