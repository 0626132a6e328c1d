//! How the collector is: metrics, and why it is not ready.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use super::api::ApiError;
use super::resource::{RESOURCES, Resource};
use crate::clock;

/// Why something could not be had, for the label of a metric.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// 403: the role doesn't allow it.
    Forbidden,
    /// 401: the token is not taken.
    Unauthorized,
    /// 404: the server has no such resource, though it had.
    Absent,
    /// 410: what was asked for was too long ago; a new list is read.
    Gone,
    /// 429: the server has too much to do.
    Throttled,
    /// Another code of HTTP.
    Server,
    /// No connection, or it broke.
    Unreachable,
    /// Nothing was said for too long.
    TimedOut,
    /// What was said makes no sense.
    Garbage,
    /// What was said is too long.
    TooLarge,
}

impl Reason {
    const ALL: [Reason; 10] = [
        Reason::Forbidden,
        Reason::Unauthorized,
        Reason::Absent,
        Reason::Gone,
        Reason::Throttled,
        Reason::Server,
        Reason::Unreachable,
        Reason::TimedOut,
        Reason::Garbage,
        Reason::TooLarge,
    ];

    /// That of an error.
    pub fn of(error: &ApiError) -> Reason {
        match error {
            ApiError::Status { code: 401, .. } => Reason::Unauthorized,
            ApiError::Status { code: 403, .. } => Reason::Forbidden,
            ApiError::Status { code: 404, .. } => Reason::Absent,
            ApiError::Status { code: 410, .. } => Reason::Gone,
            ApiError::Status { code: 429, .. } => Reason::Throttled,
            ApiError::Status { reason, .. } if reason == "Expired" || reason == "Gone" => Reason::Gone,
            ApiError::Status { .. } => Reason::Server,
            ApiError::Unreachable(_) => Reason::Unreachable,
            ApiError::TimedOut { .. } => Reason::TimedOut,
            ApiError::Garbage(_) => Reason::Garbage,
            ApiError::TooLarge { .. } => Reason::TooLarge,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Reason::Forbidden => "forbidden",
            Reason::Unauthorized => "unauthorized",
            Reason::Absent => "absent",
            Reason::Gone => "gone",
            Reason::Throttled => "throttled",
            Reason::Server => "server",
            Reason::Unreachable => "unreachable",
            Reason::TimedOut => "timed_out",
            Reason::Garbage => "garbage",
            Reason::TooLarge => "too_large",
        }
    }

    /// Whether waiting won't help: someone has to do something.
    fn stays(self) -> bool {
        matches!(self, Reason::Forbidden | Reason::Unauthorized | Reason::TooLarge)
    }
}

/// What became of a policy's status.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Written {
    /// It was written.
    Done,
    /// Somebody else's says something there.
    LeftAlone,
    /// The policy changed meanwhile.
    Conflict,
    /// It could not be written.
    Failed,
}

impl Written {
    const ALL: [Written; 4] = [Written::Done, Written::LeftAlone, Written::Conflict, Written::Failed];

    fn text(self) -> &'static str {
        match self {
            Written::Done => "done",
            Written::LeftAlone => "left_alone",
            Written::Conflict => "conflict",
            Written::Failed => "failed",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    objects: IntGaugeVec,
    octets: IntGaugeVec,
    last_sync: GaugeVec,
    errors: IntCounterVec,
    relists: IntCounterVec,
    statuses: IntCounterVec,
    /// Generations put in force.
    pub generations: IntCounter,
    /// When the last one was.
    last_write: Gauge,
    write_seconds: Histogram,
    write_errors: IntCounter,
    ready: IntGauge,
    kinds: Mutex<Vec<Touch>>,
    /// Reasons of everything that is no kind.
    others: Mutex<BTreeMap<&'static str, String>>,
    /// For how long the server may be out of touch.
    patience: Duration,
}

/// How a kind stands with the server.
#[derive(Clone, Debug)]
struct Touch {
    listed: bool,
    last: Instant,
    fault: Option<Failing>,
}

#[derive(Clone, Debug)]
struct Failing {
    reason: Reason,
    text: String,
    since: Instant,
    /// Whether the log has it.
    logged: bool,
}

/// How long something must be wrong to be worth a line: a server that starts again cuts every watch, and refuses what is
/// allowed until it has read its roles.
const WORTH_A_LINE: Duration = Duration::from_secs(2);

impl Telemetry {
    /// All counters at zero; every kind waits for its first list. `patience`: for how long the server may be out of touch.
    ///
    /// # Panics
    /// Two metrics of one name: no input leads there.
    pub fn new(patience: Duration) -> Telemetry {
        let opts = |name: &str, help: &str| Opts::new(format!("namegate_collect_{name}"), help);
        let vec = |name, help, labels: &[&str]| IntCounterVec::new(opts(name, help), labels).expect("a metric");
        let gauges = |name, help| IntGaugeVec::new(opts(name, help), &["kind"]).expect("a metric");
        let counter = |name, help| IntCounter::with_opts(opts(name, help)).expect("a metric");
        let write_seconds =
            HistogramOpts::from(opts("write_seconds", "How long it takes to put a generation in force."))
                .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]);
        let touch = Touch { listed: false, last: clock::now(), fault: None };
        let telemetry = Telemetry {
            registry: Registry::new(),
            objects: gauges("objects", "Objects that are known, by kind."),
            octets: gauges("octets", "Octets of the objects that are known, by kind."),
            last_sync: GaugeVec::new(
                opts("last_sync_timestamp_seconds", "When the API server last said something of a kind; since 1970."),
                &["kind"],
            )
            .expect("a metric"),
            errors: vec(
                "errors_total",
                "What could not be had from the API server, by kind and reason.",
                &["kind", "reason"],
            ),
            relists: vec("relists_total", "Lists that were read anew, by kind.", &["kind"]),
            statuses: vec("status_writes_total", "What became of conditions of policies.", &["result"]),
            generations: counter("generations_total", "Generations of the snapshot that were put in force."),
            last_write: Gauge::with_opts(opts("last_write_timestamp_seconds", "When the last one was; since 1970."))
                .expect("a metric"),
            write_seconds: Histogram::with_opts(write_seconds).expect("a metric"),
            write_errors: counter("write_errors_total", "Generations that could not be written."),
            ready: IntGauge::with_opts(opts("ready", "1: everything was listed, written and is in touch."))
                .expect("a metric"),
            kinds: Mutex::new(vec![touch; RESOURCES.len()]),
            others: Mutex::new(BTreeMap::from([("snapshot", "not written yet".to_owned())])),
            patience,
        };
        let Telemetry { objects, octets, last_sync, errors, relists, statuses, .. } = &telemetry;
        let all: [Box<dyn prometheus::core::Collector>; 11] = [
            Box::new(objects.clone()),
            Box::new(octets.clone()),
            Box::new(last_sync.clone()),
            Box::new(errors.clone()),
            Box::new(relists.clone()),
            Box::new(statuses.clone()),
            Box::new(telemetry.generations.clone()),
            Box::new(telemetry.last_write.clone()),
            Box::new(telemetry.write_seconds.clone()),
            Box::new(telemetry.write_errors.clone()),
            Box::new(telemetry.ready.clone()),
        ];
        for metric in all {
            telemetry.registry.register(metric).expect("one of a name");
        }
        // Zeros are told from the start, so that a rate has where to begin.
        for resource in RESOURCES {
            objects.with_label_values(&[resource.plural]).set(0);
            octets.with_label_values(&[resource.plural]).set(0);
            relists.with_label_values(&[resource.plural]).reset();
            for reason in Reason::ALL {
                errors.with_label_values(&[resource.plural, reason.text()]).reset();
            }
        }
        for written in Written::ALL {
            statuses.with_label_values(&[written.text()]).reset();
        }
        telemetry
    }

    /// The server said something of a kind that makes sense.
    pub fn touched(&self, resource: usize) {
        let plural = RESOURCES[resource].plural;
        self.last_sync.with_label_values(&[plural]).set(since_1970(clock::wall()));
        let mut kinds = lock(&self.kinds);
        kinds[resource].last = clock::now();
        if let Some(failing) = kinds[resource].fault.take().filter(|failing| failing.logged) {
            tracing::info!(kind = plural, was = failing.text, "in touch again");
        }
    }

    /// A list of a kind was read whole.
    pub fn listed(&self, resource: usize) {
        let mut kinds = lock(&self.kinds);
        if std::mem::replace(&mut kinds[resource].listed, true) {
            self.relists.with_label_values(&[RESOURCES[resource].plural]).inc();
        }
        drop(kinds);
        self.touched(resource);
    }

    /// How many objects of a kind are known, and how many octets they have.
    pub fn counted(&self, resource: usize, (objects, octets): (usize, usize)) {
        let label = [RESOURCES[resource].plural];
        self.objects.with_label_values(&label).set(i64::try_from(objects).unwrap_or(i64::MAX));
        self.octets.with_label_values(&label).set(i64::try_from(octets).unwrap_or(i64::MAX));
    }

    /// Something of a kind could not be had. It is logged when it is another thing than before.
    pub fn failed(&self, resource: &Resource, index: usize, error: &ApiError) {
        let reason = Reason::of(error);
        self.errors.with_label_values(&[resource.plural, reason.text()]).inc();
        if reason == Reason::Gone {
            tracing::debug!(kind = resource.plural, %error, "listed anew");
            return;
        }
        let text = match reason {
            Reason::Forbidden => format!("{error}; the role needs the verbs list and watch for it"),
            _ => error.to_string(),
        };
        let now = clock::now();
        let mut kinds = lock(&self.kinds);
        let listed = kinds[index].listed;
        let same = kinds[index].fault.take().filter(|failing| failing.reason == reason);
        let (since, logged) = same.map_or((now, false), |failing| (failing.since, failing.logged));
        // Before the first list somebody waits for an answer.
        let worth = !logged && (now.saturating_duration_since(since) >= WORTH_A_LINE || reason.stays() && !listed);
        if worth {
            let stays =
                if listed { "what is known of it stays in the snapshot" } else { "nothing is written without it" };
            tracing::warn!(kind = resource.plural, error = text, "{stays}");
        } else {
            tracing::debug!(kind = resource.plural, error = text, "tried again");
        }
        kinds[index].fault = Some(Failing { reason, text, since, logged: logged || worth });
    }

    /// What became of a condition.
    pub fn status(&self, written: Written) {
        self.statuses.with_label_values(&[written.text()]).inc();
    }

    /// A generation was put in force, or is what it was; how long that took.
    pub fn wrote(&self, took: Duration, differs: bool) {
        if differs {
            self.generations.inc();
        }
        self.last_write.set(since_1970(clock::wall()));
        self.write_seconds.observe(took.as_secs_f64());
        self.set_other("snapshot", None);
    }

    /// A generation could not be written.
    pub fn could_not_write(&self, error: &std::io::Error) {
        self.write_errors.inc();
        tracing::error!(%error, "the snapshot can't be written; the last generation stays in force");
        self.set_other("snapshot", Some(format!("can't be written: {error}; the last generation stays in force")));
    }

    /// Whether a generation of this process is in force.
    pub fn has_written(&self) -> bool {
        self.write_seconds.get_sample_count() > 0
    }

    /// Replaces the reason of what is no kind; `None`: all is well.
    pub fn set_other(&self, part: &'static str, reason: Option<String>) {
        match reason {
            Some(reason) => drop(lock(&self.others).insert(part, reason)),
            None => drop(lock(&self.others).remove(part)),
        }
    }

    /// Why it is not ready; nothing: it is.
    pub fn reasons(&self) -> Vec<String> {
        let now = clock::now();
        let kinds = lock(&self.kinds).clone();
        let kinds = RESOURCES.iter().zip(&kinds).filter_map(|(resource, touch)| {
            let silent = now.saturating_duration_since(touch.last);
            match &touch.fault {
                Some(Failing { reason, text, .. }) if reason.stays() || !touch.listed => {
                    Some(format!("{resource}: {text}"))
                }
                Some(Failing { text, .. }) if silent > self.patience => {
                    Some(format!("{resource}: out of touch for {} s: {text}", silent.as_secs()))
                }
                _ if !touch.listed => Some(format!("{resource}: not listed yet")),
                _ => None,
            }
        });
        let others = lock(&self.others);
        kinds.chain(others.iter().map(|(part, reason)| format!("{part}: {reason}"))).collect()
    }

    /// In Prometheus' text format.
    ///
    /// # Errors
    /// It can't be written down; no input leads there.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        self.ready.set(i64::from(self.reasons().is_empty()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn since_1970(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = include_str!("../../README.md");

    #[test]
    fn the_readme_lists_every_metric() {
        let telemetry = Telemetry::new(Duration::from_secs(60));
        telemetry.touched(0);
        let text = telemetry.text().expect("text");
        let mut ours: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let rows = README.lines().filter(|line| line.starts_with("| `namegate_collect_"));
        let mut listed: Vec<_> = rows.filter_map(|line| line.split('`').nth(1)).collect();
        ours.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, ours);
        for reason in Reason::ALL {
            assert!(README.contains(&format!("`{}`", reason.text())), "{reason:?}");
        }
    }

    fn refused(code: u16) -> ApiError {
        ApiError::Status { code, reason: String::new(), message: "no".to_owned(), retry_after: None }
    }

    #[test]
    fn it_is_ready_when_everything_was_listed_and_written_and_is_in_touch() {
        let telemetry = Telemetry::new(Duration::ZERO);
        assert_eq!(telemetry.reasons().len(), RESOURCES.len() + 1);
        for index in 0..RESOURCES.len() {
            telemetry.listed(index);
        }
        assert_eq!(telemetry.reasons(), ["snapshot: not written yet"]);
        telemetry.wrote(Duration::from_millis(1), true);
        assert_eq!(telemetry.reasons(), [""; 0]);
        telemetry.failed(&RESOURCES[3], 3, &refused(500));
        std::thread::sleep(Duration::from_millis(1)); // longer than the patience that it has
        assert_eq!(telemetry.reasons(), ["pods: out of touch for 0 s: 500: no"]);
        telemetry.failed(&RESOURCES[3], 3, &refused(403));
        assert_eq!(telemetry.reasons(), ["pods: 403: no; the role needs the verbs list and watch for it"]);
        telemetry.touched(3);
        // A version that is too old is part of the day.
        telemetry.failed(&RESOURCES[3], 3, &refused(410));
        assert_eq!(telemetry.reasons(), [""; 0]);
        telemetry.could_not_write(&std::io::Error::other("full"));
        assert_eq!(telemetry.reasons(), ["snapshot: can't be written: full; the last generation stays in force"]);
    }
}
