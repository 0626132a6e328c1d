//! One kind, followed: a list, then every change from there on; a new list when the server has forgotten what came after.
//!
//! What is known stays known until the server says otherwise: an error, a silence or nonsense takes nothing away.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::api::{ApiError, Asked, Event};
use super::object::{Key, Reduced, reduce};
use super::resource::{RESOURCES, Resource};
use super::telemetry::Reason;
use crate::clock;

/// How often in a row a watch may fail at the same version before a list is read anew: the server may send what it can't
/// be got past.
const TRIES: u32 = 3;

/// Follows one of [`RESOURCES`] for ever.
pub(super) async fn follow(resource: usize, shared: Arc<Shared>) {
    let mut follower = Follower {
        index: resource,
        resource: &RESOURCES[resource],
        backoff: Backoff::new(shared.timing.backoff_min, shared.timing.backoff_max),
        page: RESOURCES[resource].page,
        absent: Absent::No,
        shared,
    };
    loop {
        let pause = match follower.list().await {
            Ok(Some((version, asked))) => follower.watch(version, asked).await,
            Ok(None) => follower.shared.timing.absent_recheck,
            Err(pause) => pause,
        };
        tokio::time::sleep(pause).await;
    }
}

struct Follower {
    index: usize,
    resource: &'static Resource,
    shared: Arc<Shared>,
    backoff: Backoff,
    /// How many objects are asked for at a time: fewer, if so many are too long.
    page: u32,
    absent: Absent,
}

/// Whether the server denies having the resource.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Absent {
    /// It doesn't.
    No,
    /// It had it, and denies it since then.
    Doubted(Instant),
    /// It does, and that was believed.
    Believed,
}

/// Where a watch goes on: the API's version, and what is asked for.
struct From {
    api_version: &'static str,
    asked: Asked,
}

impl Follower {
    /// Reads everything. `None`: the cluster has no such resource. `Err`: how long to wait until the next try.
    async fn list(&mut self) -> Result<Option<(String, From)>, Duration> {
        let mut last = None;
        for api_version in self.resource.versions {
            let only = self.resource.only.map(|(_, name)| name);
            let asked = Asked { path: self.resource.path(api_version), only };
            match self.list_of(api_version, &asked).await {
                Ok(version) => {
                    self.absent = Absent::No;
                    return Ok(Some((version, From { api_version, asked })));
                }
                Err(error) if error.code() == Some(404) && self.resource.may_be_absent => last = Some(error),
                Err(error) => return Err(self.failed(&error)),
            }
        }
        let Some(error) = last else { return Err(self.backoff.next()) };
        self.absent(&error)
    }

    /// The server has no such resource. If it had one, that may be a server that is just starting: what policies say must not
    /// be forgotten for that.
    fn absent(&mut self, error: &ApiError) -> Result<Option<(String, From)>, Duration> {
        if self.absent == Absent::Believed {
            self.shared.telemetry.touched(self.index);
            return Ok(None);
        }
        let known = self.shared.store().size(self.index).0 > 0 || self.shared.is_in_force(self.resource);
        let now = clock::now();
        let since = if let Absent::Doubted(since) = self.absent { since } else { now };
        if known && now.saturating_duration_since(since) < self.shared.timing.absent_grace {
            self.absent = Absent::Doubted(since);
            return Err(self.failed(error).min(self.shared.timing.absent_recheck));
        }
        if known {
            tracing::warn!(kind = self.resource.plural, "the cluster has it no more; its objects are forgotten");
        }
        self.absent = Absent::Believed;
        self.accept(Vec::new());
        self.backoff.reset();
        Ok(None)
    }

    async fn list_of(&mut self, api_version: &'static str, asked: &Asked) -> Result<String, ApiError> {
        let mut list = Vec::new();
        let mut version = None;
        let mut next: Option<String> = None;
        loop {
            let patience = self.shared.timing.list;
            let page = match self.shared.api.page(asked, self.page, next.as_deref(), patience).await {
                Err(ApiError::TooLarge { .. }) if self.page > 1 => {
                    self.page = (self.page / 4).max(1);
                    continue;
                }
                page => page?,
            };
            for text in page.items()? {
                let reduced = self.reduce(api_version, text)?;
                self.shared.judge(self.index, &reduced);
                list.push(self.shared.store().share(self.index, reduced));
            }
            // That of the first page: all others are as of then too.
            version.get_or_insert(page.version);
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        self.accept(list);
        Ok(version.unwrap_or_default())
    }

    /// Takes a whole list in place of what was known.
    fn accept(&mut self, list: Vec<(Key, Option<Arc<str>>)>) {
        let mut store = self.shared.store();
        let changed = store.replace(self.index, &list);
        let size = store.size(self.index);
        drop(store);
        self.shared.judge_only(self.index, &list);
        self.shared.telemetry.counted(self.index, size);
        self.shared.telemetry.listed(self.index);
        if changed {
            self.shared.changed(self.resource);
        }
    }

    /// Watches from `version` on until a new list is needed; how long to wait before that.
    async fn watch(&mut self, mut version: String, from: From) -> Duration {
        let mut tries = 0;
        loop {
            let before = version.clone();
            match self.watch_once(&mut version, &from).await {
                Ok(()) => tries = 0,
                Err(error) => {
                    tries = if version == before { tries + 1 } else { 1 };
                    let pause = self.failed(&error);
                    // A kind that is gone, or a version that is: the list tells.
                    let over = matches!(Reason::of(&error), Reason::Gone | Reason::Absent);
                    let hopeless = tries >= TRIES && matches!(Reason::of(&error), Reason::Garbage | Reason::TooLarge);
                    if over || hopeless {
                        return pause;
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// One watch, until the server ends it.
    async fn watch_once(&mut self, version: &mut String, from: &From) -> Result<(), ApiError> {
        let timing = &self.shared.timing;
        // Not all collectors of a cluster at once.
        let lasts = timing.watch.mul_f64(0.75 + 0.25 * chance());
        let margin = timing.watch_margin;
        let started = clock::now();
        let mut watch = self.shared.api.watch(&from.asked, version, timing.list, lasts, margin).await?;
        self.shared.telemetry.touched(self.index);
        while let Some(event) = watch.next().await? {
            match event {
                Event::Applied(text) => {
                    let reduced = self.reduce(from.api_version, &text)?;
                    self.shared.judge(self.index, &reduced);
                    version.clone_from(&reduced.version);
                    self.change(|store, index| store.apply(index, &reduced.key, reduced.text.as_deref()));
                }
                Event::Deleted(text) => {
                    let reduced = self.reduce(from.api_version, &text)?;
                    self.shared.forget(self.index, &reduced.key);
                    version.clone_from(&reduced.version);
                    self.change(|store, index| store.remove(index, &reduced.key));
                }
                Event::Bookmark(reached) => *version = reached,
            }
            self.shared.telemetry.touched(self.index);
            self.backoff.reset();
        }
        // A server that ends every watch at once is asked less and less often.
        let lasted = clock::now().saturating_duration_since(started);
        if lasted < self.shared.timing.backoff_min {
            tokio::time::sleep(self.backoff.next()).await;
        } else {
            self.backoff.reset();
        }
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut super::store::Store, usize) -> bool) {
        let mut store = self.shared.store();
        let changed = change(&mut store, self.index);
        let size = store.size(self.index);
        drop(store);
        if changed {
            self.shared.telemetry.counted(self.index, size);
            self.shared.changed(self.resource);
        }
    }

    fn reduce(&self, api_version: &str, text: &str) -> Result<Reduced, ApiError> {
        reduce(self.resource, api_version, self.shared.node.as_deref(), text).map_err(ApiError::Garbage)
    }

    /// Notes an error; how long to wait.
    fn failed(&mut self, error: &ApiError) -> Duration {
        self.shared.telemetry.failed(self.resource, self.index, error);
        let wanted = match error {
            ApiError::Status { retry_after: Some(wanted), .. } => *wanted,
            _ => Duration::ZERO,
        };
        // No server can put us off for long.
        self.backoff.next().max(wanted.min(self.backoff.max))
    }
}

/// Waits that double, each a little shorter by chance.
#[derive(Debug)]
struct Backoff {
    min: Duration,
    max: Duration,
    now: Duration,
}

impl Backoff {
    fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max, now: min }
    }

    fn next(&mut self) -> Duration {
        let pause = self.now;
        self.now = (self.now * 2).min(self.max);
        pause.mul_f64(0.5 + 0.5 * chance())
    }

    fn reset(&mut self) {
        self.now = self.min;
    }
}

/// Something between 0 and 1. Nothing secret hangs on it.
fn chance() -> f64 {
    let seed = RandomState::new().hash_one(0_u8);
    f64::from(u32::try_from(seed >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_start_again_after_a_success() {
        let (min, max) = (Duration::from_millis(200), Duration::from_secs(30));
        let mut backoff = Backoff::new(min, max);
        for doubled in 0..20 {
            let full = (min * 2_u32.pow(doubled.min(10))).min(max);
            let pause = backoff.next();
            assert!(pause <= full && pause * 2 >= full, "{pause:?} of {full:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= min);
    }
}
