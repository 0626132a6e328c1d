//! What namegate makes of a policy, written into the policy's status, where `kubectl get cnp` shows it.
//!
//! The condition is Cilium's: of type `Valid`, `True` or `False`. Cilium writes the same one. Whatever stands there that is
//! not ours (by its reason) is left alone, so that the two never take turns; where Cilium comes second and puts its own in
//! place of ours, that is what stays. Written only when it says something else than what is there, and only over the version
//! that was looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::Shared;
use super::api::ApiError;
use super::object::{Key, Reduced};
use super::resource::RESOURCES;
use super::telemetry::Written;
use crate::clock;
use crate::cluster::fields::FaultKind;
use crate::cluster::files::File;
use crate::cluster::snapshot::{LastGood, OnInvalid, assemble};
use crate::observe::text::rfc3339;

/// The type of the condition.
const TYPE: &str = "Valid";
/// The policy is in force as it is written.
const ACCEPTED: &str = "NamegateAccepted";
/// An item of it allows nothing, as namegate can't enforce it yet; the rest is in force.
const PARTLY: &str = "NamegatePartlyEnforced";
/// The policy is refused.
const REFUSED: &str = "NamegateRefused";
/// How long writing one may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// From one to the next at least: a thousand policies after an upgrade are no reason to hurry.
const GAP: Duration = Duration::from_millis(20);
/// The most characters of a message.
const MESSAGE_CHARS: usize = 2_000;

/// What is known of conditions, and which have to be looked at.
#[derive(Default)]
pub(super) struct Conditions {
    known: Mutex<Known>,
    wake: Notify,
}

#[derive(Default)]
struct Known {
    policies: BTreeMap<(usize, Key), Policy>,
    waiting: BTreeSet<(usize, Key)>,
}

/// What the server said last of a policy.
#[derive(Clone)]
struct Policy {
    api_version: String,
    version: String,
    conditions: Vec<Value>,
}

/// What namegate makes of a policy.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Verdict {
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// What is to be done about a condition.
#[derive(PartialEq, Debug)]
enum Plan {
    /// It says so already.
    Nothing,
    /// Somebody else's stands there.
    LeaveAlone,
    /// All conditions as they should be.
    Write(Vec<Value>),
}

impl Conditions {
    /// A policy was seen.
    pub fn saw(&self, resource: usize, object: &Reduced) {
        let policy = Policy {
            api_version: object.api_version.clone(),
            version: object.version.clone(),
            conditions: object.conditions.clone(),
        };
        let mut known = self.lock();
        known.policies.insert((resource, object.key.clone()), policy);
        known.waiting.insert((resource, object.key.clone()));
        drop(known);
        self.wake.notify_one();
    }

    /// A policy is gone.
    pub fn forget(&self, resource: usize, key: &Key) {
        self.lock().policies.remove(&(resource, key.clone()));
    }

    /// There are no policies of a kind but these.
    pub fn retain(&self, resource: usize, keys: &BTreeSet<&Key>) {
        self.lock().policies.retain(|(kind, key), _| *kind != resource || keys.contains(key));
    }

    /// What decides about all of them is another now.
    pub fn look_at_all(&self) {
        let mut known = self.lock();
        known.waiting = known.policies.keys().cloned().collect();
        drop(known);
        self.wake.notify_one();
    }

    fn next(&self) -> Option<((usize, Key), Policy)> {
        let mut known = self.lock();
        while let Some(at) = known.waiting.pop_first() {
            if let Some(policy) = known.policies.get(&at) {
                let policy = policy.clone();
                return Some((at, policy));
            }
        }
        None
    }

    /// Puts back what could not be done.
    fn put_back(&self, at: (usize, Key)) {
        self.lock().waiting.insert(at);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes conditions for ever.
pub(super) async fn write(shared: &Shared) {
    let Some(conditions) = &shared.conditions else { return };
    let mut pause = shared.timing.backoff_min;
    loop {
        // Cilium's settings are part of the verdict.
        let able = shared.store().is_whole();
        let Some((at, policy)) = able.then(|| conditions.next()).flatten() else {
            let _ = tokio::time::timeout(Duration::from_secs(1), conditions.wake.notified()).await;
            continue;
        };
        match write_one(shared, &at, &policy).await {
            Ok(done) => {
                if let Some(written) = done {
                    shared.telemetry.status(written);
                    tokio::time::sleep(GAP).await;
                }
                if done == Some(Written::Done) {
                    shared.telemetry.set_other("status", None);
                    pause = shared.timing.backoff_min;
                }
            }
            Err(error) => {
                shared.telemetry.status(Written::Failed);
                let (resource, key) = &at;
                let reason = format!("{} {}/{}: {error}", RESOURCES[*resource], key.namespace, key.name);
                tracing::warn!(reason, "a policy's status can't be written");
                shared.telemetry.set_other("status", Some(reason));
                conditions.put_back(at);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(shared.timing.backoff_max);
            }
        }
    }
}

/// Looks at one policy; what became of it, if anything had to.
async fn write_one(shared: &Shared, at: &(usize, Key), policy: &Policy) -> Result<Option<Written>, ApiError> {
    let (resource, key) = at;
    let (text, config) = {
        let store = shared.store();
        let config = RESOURCES.iter().position(|resource| resource.only.is_some()).and_then(|index| {
            let (namespace, name) = RESOURCES[index].only?;
            store.get(index, &Key { namespace: namespace.into(), name: name.into() })
        });
        (store.get(*resource, key), config)
    };
    let Some(text) = text else { return Ok(None) };
    let verdict = judge(&text, config.as_deref());
    let conditions = match plan(&policy.conditions, &verdict, clock::wall()) {
        Plan::Nothing => return Ok(None),
        Plan::LeaveAlone => return Ok(Some(Written::LeftAlone)),
        Plan::Write(conditions) => conditions,
    };
    let patch = json!({"metadata": {"resourceVersion": policy.version}, "status": {"conditions": conditions}});
    let path = RESOURCES[*resource].status_path(&policy.api_version, &key.namespace, &key.name);
    match shared.api.merge(&path, patch.to_string().into_bytes(), PATIENCE).await {
        Ok(()) => Ok(Some(Written::Done)),
        // It changed, or went: the watch says so, and it is looked at again.
        Err(ApiError::Status { code: 409 | 404, .. }) => Ok(Some(Written::Conflict)),
        Err(error) => Err(error),
    }
}

/// What namegate makes of a policy: what `namegate check` says of it.
fn judge(policy: &str, cilium_config: Option<&str>) -> Verdict {
    let content = [policy, cilium_config.unwrap_or_default()].join("\n");
    let file = File { name: "policy.json".to_owned(), content: Ok(content.into_bytes()) };
    let snapshot = assemble(&[file], &LastGood::default(), OnInvalid::Refuse);
    let said = |kind: FaultKind| {
        let refusals = snapshot.refusals.iter().filter(|refusal| refusal.policy && refusal.kind == kind);
        refusals.map(|refusal| refusal.text.as_str()).collect::<Vec<_>>()
    };
    let (wrong, unenforced) = (said(FaultKind::Wrong), said(FaultKind::Unenforced));
    let (status, reason, message) = match (wrong.as_slice(), unenforced.as_slice()) {
        ([], []) => ("True", ACCEPTED, "namegate enforces this policy".to_owned()),
        ([], partly) => ("True", PARTLY, partly.join("; ")),
        (wrong, _) => ("False", REFUSED, wrong.join("; ")),
    };
    Verdict { status, reason, message: message.chars().take(MESSAGE_CHARS).collect() }
}

/// What has to be done so that the verdict stands among the conditions.
fn plan(conditions: &[Value], verdict: &Verdict, now: SystemTime) -> Plan {
    let Verdict { status, reason, message } = verdict;
    let there = conditions.iter().find(|condition| condition["type"] == TYPE);
    if let Some(there) = there {
        let ours = matches!(there["reason"].as_str(), Some(ACCEPTED | PARTLY | REFUSED));
        if !ours {
            return Plan::LeaveAlone;
        }
        if there["status"] == *status && there["reason"] == *reason && there["message"] == **message {
            return Plan::Nothing;
        }
    }
    // When it became what it is, not when it was last written.
    let since = there.filter(|there| there["status"] == *status).and_then(|there| there["lastTransitionTime"].as_str());
    let since = since.map_or_else(|| seconds(now), str::to_owned);
    let ours = json!({
        "type": TYPE, "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
    });
    let others = conditions.iter().filter(|condition| condition["type"] != TYPE).cloned();
    Plan::Write(others.chain([ours]).collect())
}

/// RFC 3339 to seconds, as `metav1.Time` has it.
fn seconds(time: SystemTime) -> String {
    let text = rfc3339(time);
    let whole = text.split_once('.').map_or(text.as_str(), |(whole, _)| whole);
    format!("{}Z", whole.trim_end_matches('Z'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: &str) -> String {
        format!(
            r#"{{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{{"name":"a","namespace":"b"}},"spec":{spec}}}"#
        )
    }

    #[track_caller]
    fn judged(spec: &str, config: Option<&str>) -> (&'static str, &'static str, String) {
        let Verdict { status, reason, message } = judge(&policy(spec), config);
        (status, reason, message)
    }

    #[test]
    fn the_verdict_is_what_the_reader_says() {
        let good = r#"{"endpointSelector":{},"egress":[{"toFQDNs":[{"matchName":"example.com"}]}]}"#;
        assert_eq!(judged(good, None).0, "True");
        assert_eq!(judged(good, None).1, ACCEPTED);
        let (status, reason, message) = judged(r#"{"endpointSelector":{},"egres":[]}"#, None);
        assert_eq!((status, reason), ("False", REFUSED));
        assert!(message.contains("egres") && message.contains("allowed: "), "{message}");
        let http = r#"{"endpointSelector":{},"egress":[{"toPorts":[{"ports":[{"port":"80","protocol":"TCP"}],
            "rules":{"http":[{"method":"GET"}]}}]}]}"#;
        let (status, reason, message) = judged(http, None);
        assert_eq!((status, reason), ("True", PARTLY));
        assert!(message.contains("not enforced by namegate yet"), "{message}");
        // What depends on Cilium's settings is judged by them.
        let nodes = r#"{"endpointSelector":{},"egress":[{"toNodes":[{"matchLabels":{"a":"b"}}]}]}"#;
        let config = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"cilium-config","namespace":"kube-system"},"data":{"enable-node-selector-labels":"true"}}"#;
        assert_eq!((judged(nodes, None).0, judged(nodes, Some(config)).0), ("False", "True"));
    }

    #[test]
    fn a_condition_is_written_when_it_says_something_else_and_never_over_somebody_elses() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let verdict = |status, reason, message: &str| Verdict { status, reason, message: message.to_owned() };
        let refused = verdict("False", REFUSED, "no such field");
        let Plan::Write(first) = plan(&[json!({"type": "Other", "status": "True"})], &refused, now) else {
            panic!("nothing stood there");
        };
        assert_eq!(first.len(), 2);
        assert_eq!(first[1]["lastTransitionTime"], "1970-01-01T00:00:01Z");
        let later = now + Duration::from_secs(60);
        assert_eq!(plan(&first, &refused, later), Plan::Nothing);
        // Another message is no other state.
        let Plan::Write(second) = plan(&first, &verdict("False", REFUSED, "another"), later) else {
            panic!("it says something else");
        };
        assert_eq!((second.len(), &second[1]["lastTransitionTime"]), (2, &json!("1970-01-01T00:00:01Z")));
        let Plan::Write(third) = plan(&second, &verdict("True", ACCEPTED, "fine"), later) else {
            panic!("it says something else");
        };
        assert_eq!(third[1]["lastTransitionTime"], "1970-01-01T00:01:01Z");
        let ciliums = json!({"type": "Valid", "status": "True", "message": "Policy validation succeeded"});
        assert_eq!(plan(&[ciliums], &refused, now), Plan::LeaveAlone);
    }
}
