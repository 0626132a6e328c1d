//! The ConfigMap `cilium-config`: Cilium's settings, as far as namegate has the same.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::Source;
use super::text::duration_text;

/// What `cilium-config` comes to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CiliumConfig {
    /// namegate's settings with their values, to be set where nothing else sets them.
    pub settings: Vec<(&'static str, String)>,
    /// Keys about policy or DNS that have no setting here.
    pub without_setting: Vec<String>,
    /// Keys whose value can't be: each with what is wrong.
    pub wrong: Vec<String>,
}

/// How a value of Cilium's is written.
#[derive(Clone, Copy)]
enum Form {
    /// The same as here.
    Same,
    /// A number of seconds.
    Seconds,
    /// Go's durations, as `1m30s`.
    Duration,
    /// One of these words, in any case.
    Words(&'static [&'static str]),
}

/// Cilium's key, namegate's setting.
const KEYS: &[(&str, &str, Form)] = &[
    ("cluster-name", "cluster_name", Form::Same),
    ("enable-policy", "policy.enforcement", Form::Words(&["default", "always", "never"])),
    ("policy-audit-mode", "policy.audit", Form::Words(&["true", "false"])),
    ("tofqdns-min-ttl", "dns.min_ttl", Form::Seconds),
    ("tofqdns-endpoint-max-ip-per-hostname", "dns.endpoint_max_ip_per_hostname", Form::Same),
    ("tofqdns-idle-connection-grace-period", "dns.idle_connection_grace_period", Form::Duration),
    ("tofqdns-max-deferred-connection-deletes", "dns.max_deferred_connection_deletes", Form::Same),
    ("tofqdns-dns-reject-response-code", "dns.reject_response_code", Form::Words(&["refused", "nameError"])),
    ("tofqdns-enable-dns-compression", "dns.enable_dns_compression", Form::Words(&["true", "false"])),
    ("tofqdns-enable-poller", "dns.poller", Form::Words(&["true", "false"])),
];

/// Other keys whose values change what policies mean or how names are answered in Cilium. The reader of policies takes
/// `enable-node-selector-labels` itself.
const FAMILIES: &[&str] =
    &["tofqdns-", "dnsproxy-", "dns-", "policy-", "fqdn-", "enable-l7-proxy", "enable-icmp-rules"];

/// Reads `data` of the ConfigMap. A value that can't be is left out and told; the others hold.
pub fn read(data: &BTreeMap<String, String>) -> CiliumConfig {
    let mut found = CiliumConfig::default();
    for (key, value) in data {
        let Some((_, setting, form)) = KEYS.iter().find(|(known, _, _)| known == key) else {
            if FAMILIES.iter().any(|family| key.starts_with(family)) {
                found.without_setting.push(key.clone());
            }
            continue;
        };
        let value = value.trim();
        let Some(text) = form.read(value) else {
            found.wrong.push(format!("{key}: found {value:?}; allowed is {form}"));
            continue;
        };
        // The setting's own range decides, as it does for a flag.
        match Source::nothing().with_flag(setting, key, text.as_str()).load() {
            Ok(_) => found.settings.push((setting, text)),
            Err(error) => found.wrong.push(format!("{key}: {error}")),
        }
    }
    found
}

impl Form {
    fn read(self, value: &str) -> Option<String> {
        match self {
            Form::Same => Some(value.to_owned()),
            Form::Seconds => value.parse::<u32>().ok().map(|seconds| format!("{seconds}s")),
            Form::Duration => go_duration(value).map(duration_text),
            Form::Words(words) => {
                words.iter().find(|word| word.eq_ignore_ascii_case(value)).map(|word| (*word).to_owned())
            }
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Form::Same => f.write_str("text"),
            Form::Seconds => f.write_str("a number of seconds"),
            Form::Duration => f.write_str("a duration as 30s or 1m30s"),
            Form::Words(words) => f.write_str(&words.join(" or ")),
        }
    }
}

/// `time.ParseDuration` of Go, to the millisecond, without fractions: `1h2m3s4ms`, `0`.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let millis = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        rest = &rest[letters..];
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Enforcing, RejectCode};

    fn of(pairs: &[(&str, &str)]) -> CiliumConfig {
        read(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn keys_that_people_write_are_honoured() {
        let found = of(&[
            ("enable-policy", "always"),
            ("policy-audit-mode", "true"),
            ("tofqdns-min-ttl", "90"),
            ("tofqdns-endpoint-max-ip-per-hostname", "77"),
            ("tofqdns-idle-connection-grace-period", "1m30s"),
            ("tofqdns-max-deferred-connection-deletes", "55"),
            ("tofqdns-dns-reject-response-code", "nameerror"),
            ("tofqdns-enable-dns-compression", "false"),
            ("tofqdns-enable-poller", "true"),
            ("cluster-name", "blue"),
        ]);
        assert_eq!((&found.wrong, &found.without_setting), (&vec![], &vec![]));
        let config = Source::nothing().with_cluster(found.settings).load().unwrap();
        let expected = {
            let mut config = Config { cluster_name: "blue".to_owned(), ..Config::default() };
            config.policy.enforcement = Enforcing::Always;
            config.policy.audit = true;
            config.dns.min_ttl = Duration::from_secs(90);
            config.dns.endpoint_max_ip_per_hostname = 77;
            config.dns.idle_connection_grace_period = Duration::from_secs(90);
            config.dns.max_deferred_connection_deletes = 55;
            config.dns.reject_response_code = RejectCode::NameError;
            config.dns.enable_dns_compression = false;
            config.dns.poller = true;
            config
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn every_setting_of_the_table_is_one() {
        for (_, setting, _) in KEYS {
            assert!(super::super::KEYS.iter().any(|key| key.name == *setting), "{setting}");
        }
    }

    #[test]
    fn ones_own_setting_stands_above_the_clusters() {
        let found = of(&[("tofqdns-min-ttl", "90"), ("policy-audit-mode", "true")]);
        let source = Source::nothing().with_flag("dns.min_ttl", "--set", "5s").with_cluster(found.settings);
        let config = source.load().unwrap();
        assert_eq!((config.dns.min_ttl, config.policy.audit), (Duration::from_secs(5), true));
    }

    #[test]
    fn what_has_no_setting_and_what_is_wrong_is_told_and_the_rest_holds() {
        let found = of(&[
            ("dnsproxy-lock-count", "131"),
            ("tofqdns-proxy-response-max-delay", "100ms"),
            ("enable-hubble", "true"),
            ("tofqdns-min-ttl", "soon"),
            ("enable-policy", "sometimes"),
            ("tofqdns-enable-poller", "true"),
        ]);
        assert_eq!(found.settings, [("dns.poller", "true".to_owned())]);
        assert_eq!(found.without_setting, ["dnsproxy-lock-count", "tofqdns-proxy-response-max-delay"]);
        assert_eq!(
            found.wrong,
            [
                "enable-policy: found \"sometimes\"; allowed is default or always or never",
                "tofqdns-min-ttl: found \"soon\"; allowed is a number of seconds",
            ]
        );
        let found = of(&[("tofqdns-endpoint-max-ip-per-hostname", "-1")]);
        assert!(found.settings.is_empty() && found.wrong[0].contains("endpoint_max_ip_per_hostname"), "{found:?}");
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(go_duration("1h2m3s4ms"), Some(Duration::from_millis(3_723_004)));
        assert_eq!(go_duration("0"), Some(Duration::ZERO));
        for text in ["", "1", "1x", "s", "-1s", "1.5s"] {
            assert_eq!(go_duration(text), None, "{text:?}");
        }
    }
}
