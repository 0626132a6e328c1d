//! Findings as SARIF 2.1.0 (OASIS), which code scanning services read.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::{Finding, Findings, Level, kinds};

/// What a path of a URI may hold as it is: RFC 3986, 3.3.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

impl Findings {
    /// The log: one run, all rules that there are, a result a finding.
    pub(super) fn sarif(&self) -> Value {
        let rules: Vec<Value> = kinds()
            .map(|(id, level, about)| {
                json!({
                    "id": id,
                    "shortDescription": {"text": about},
                    "defaultConfiguration": {"level": word(level)},
                })
            })
            .collect();
        json!({
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{
                "tool": {"driver": {"name": "namegate", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
                "columnKind": "unicodeCodePoints",
                "results": self.findings.iter().map(result).collect::<Vec<_>>(),
            }],
        })
    }
}

fn result(found: &Finding) -> Value {
    let mut location = json!({"artifactLocation": {"uri": uri(&found.file)}});
    if let (Some(line), Some(column)) = (found.line, found.column) {
        location["region"] = json!({"startLine": line, "startColumn": column});
    }
    json!({
        "ruleId": found.rule,
        "ruleIndex": kinds().position(|(id, ..)| id == found.rule),
        "level": word(found.level),
        "message": {"text": format!("{}: {}", found.object, found.text)},
        "locations": [{"physicalLocation": location}],
    })
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warning => "warning",
    }
}

/// Relative paths stay relative: the service knows against what.
fn uri(file: &str) -> String {
    let path = utf8_percent_encode(file, PATH);
    if file.starts_with('/') { format!("file://{path}") } else { path.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(file: &str, line: Option<u32>, level: Level, rule: &'static str) -> Finding {
        let (object, text) = ("Pod a/b".to_owned(), "wrong".to_owned());
        Finding { file: file.to_owned(), line, column: line, level, rule, object, text }
    }

    fn log() -> Value {
        let findings = vec![
            finding("a b.yaml", Some(3), Level::Error, "refused"),
            finding("/x/y.yaml", Some(4), Level::Warning, "public-suffix"),
            finding("gone.yaml", None, Level::Error, "refused"),
        ];
        Findings { findings, errors: 2, warnings: 1, policies: 0, pods: 0, skipped: 0, skipped_files: Vec::new() }
            .sarif()
    }

    /// What the schema demands of the parts that are used.
    #[test]
    fn the_log_has_the_shape_of_the_schema() {
        let log = log();
        assert_eq!(log["version"], "2.1.0");
        let run = &log["runs"][0];
        let driver = &run["tool"]["driver"];
        assert_eq!(driver["name"], "namegate");
        let rules = driver["rules"].as_array().unwrap();
        let ids: std::collections::BTreeSet<&str> = rules.iter().map(|rule| rule["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), rules.len(), "ids are unique");
        for rule in rules {
            assert!(!rule["shortDescription"]["text"].as_str().unwrap().is_empty());
            assert!(["error", "warning"].contains(&rule["defaultConfiguration"]["level"].as_str().unwrap()));
        }
        for result in run["results"].as_array().unwrap() {
            let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
            assert_eq!(rules[index]["id"], result["ruleId"]);
            assert!(["none", "note", "warning", "error"].contains(&result["level"].as_str().unwrap()));
            assert!(!result["message"]["text"].as_str().unwrap().is_empty());
            let place = &result["locations"][0]["physicalLocation"];
            assert!(place["artifactLocation"]["uri"].as_str().unwrap().is_ascii());
            if let Some(region) = place.get("region") {
                assert!(region["startLine"].as_u64().unwrap() >= 1 && region["startColumn"].as_u64().unwrap() >= 1);
            }
        }
    }

    #[test]
    fn places_are_uris_and_regions() {
        let log = log();
        let place = |index: usize| log["runs"][0]["results"][index]["locations"][0]["physicalLocation"].clone();
        assert_eq!(
            place(0),
            json!({"artifactLocation": {"uri": "a%20b.yaml"}, "region": {"startLine": 3, "startColumn": 3}})
        );
        assert_eq!(place(1)["artifactLocation"]["uri"], "file:///x/y.yaml");
        assert_eq!(place(2), json!({"artifactLocation": {"uri": "gone.yaml"}}));
    }
}
