//! The log: events on standard error, filtered; the filter can be changed while running.

use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{LogFormat, Observe};
use crate::observe::human;

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Sends events to standard error from now on. Only the first call of a process counts.
///
/// tracing-subscriber spells out escape sequences in what events carry, so that no name can move a cursor.
pub fn start(settings: &Observe) {
    let (filter, handle) = reload::Layer::new(filter(&settings.log));
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(human::colour_on_stderr());
    let lines = match settings.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => fmt::layer().json().with_writer(std::io::stderr).boxed(),
    };
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// Which events are written from now on. The text was checked when the configuration was read.
pub fn set_filter(text: &str) {
    if let Some(handle) = FILTER.get() {
        let _ = handle.reload(filter(text));
    }
}

fn filter(text: &str) -> EnvFilter {
    EnvFilter::try_new(text).unwrap_or_else(|_| EnvFilter::new("info"))
}
