//! Families of series: a handle for each combination of labels, created once, so that counting needs no look-up.

use std::fmt::Write;
use std::marker::PhantomData;
use std::ops::{Deref, Index};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use metrics::{Counter, Gauge, Histogram, Key, Level, Metadata, Recorder};
use metrics::{KeyName, Label as KeyLabel};
use metrics_exporter_prometheus::PrometheusRecorder;

use super::labels::Labels;

/// The metric's type in Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricType {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by bucket.
    Histogram,
}

/// One metric as declared.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    /// The name in Prometheus, unit included.
    pub name: &'static str,
    /// Its type.
    pub kind: MetricType,
    /// The help text, one sentence.
    pub help: &'static str,
    /// Names and values of the labels of each of its series.
    pub series: fn() -> Vec<Vec<(&'static str, &'static str)>>,
}

/// A reading, with its labels in Prometheus's form.
type Series = (String, Reading);

/// Creates handles.
pub(super) struct Registry {
    pub(super) recorder: PrometheusRecorder,
    readings: Mutex<Vec<(Declared, Vec<Series>)>>,
}

impl Registry {
    pub(super) fn new(recorder: PrometheusRecorder) -> Registry {
        Registry { recorder, readings: Default::default() }
    }

    /// Appends the readings, in the form in which the exporter renders the rest.
    pub(super) fn render_readings(&self, text: &mut String) {
        let readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        for (declared, series) in readings.iter() {
            if series.iter().all(|(_, reading)| reading.get().is_none()) {
                continue;
            }
            let kind = if declared.kind == MetricType::Counter { "counter" } else { "gauge" };
            let (name, help) = (declared.name, declared.help);
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, reading) in series {
                if let Some(value) = reading.get() {
                    let _ = writeln!(text, "{name}{labels} {value}");
                }
            }
            text.push('\n');
        }
    }
}

/// A figure that is read when somebody looks, and not maintained as it changes: a gauge, or a counter that is kept elsewhere.
#[derive(Clone, Debug)]
pub struct Reading(Arc<AtomicU64>);

impl Reading {
    /// Sets the current figure.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// The figure; `None` if it was never set, or is not available on this system.
    pub fn get(&self) -> Option<f64> {
        Some(f64::from_bits(self.0.load(Ordering::Relaxed))).filter(|value| !value.is_nan())
    }
}

/// Counts one series.
pub(super) trait Handle: Sized {
    fn describe(registry: &Registry, declared: &Declared);
    fn register(registry: &Registry, declared: &Declared, labels: &[(&'static str, &'static str)]) -> Self;
    /// Called once all series of a family are registered.
    fn registered(registry: &Registry, declared: &Declared, family: &[Self]) {
        let _ = (registry, declared, family);
    }
}

const METADATA: Metadata<'static> = Metadata::new("bimip", Level::INFO, None);

fn key(declared: &Declared, labels: &[(&'static str, &'static str)]) -> Key {
    let labels: Vec<_> = labels.iter().map(|(name, value)| KeyLabel::from_static_parts(name, value)).collect();
    Key::from_parts(declared.name, labels)
}

macro_rules! handles {
    ($($handle:ident: $describe:ident, $register:ident;)*) => {$(
        impl Handle for $handle {
            fn describe(registry: &Registry, declared: &Declared) {
                registry.recorder.$describe(KeyName::from_const_str(declared.name), None, declared.help.into());
            }

            fn register(registry: &Registry, declared: &Declared, labels: &[(&'static str, &'static str)]) -> Self {
                registry.recorder.$register(&key(declared, labels), &METADATA)
            }
        }
    )*};
}

handles! {
    Counter: describe_counter, register_counter;
    Gauge: describe_gauge, register_gauge;
    Histogram: describe_histogram, register_histogram;
}

impl Handle for Reading {
    fn describe(_registry: &Registry, _declared: &Declared) {}

    fn register(_registry: &Registry, _declared: &Declared, _labels: &[(&'static str, &'static str)]) -> Reading {
        Reading(Arc::new(AtomicU64::new(f64::NAN.to_bits())))
    }

    fn registered(registry: &Registry, declared: &Declared, family: &[Reading]) {
        let labels = (declared.series)().into_iter().map(|labels| {
            let pairs: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
            if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
        });
        let series = labels.zip(family.iter().cloned()).collect();
        registry.readings.lock().unwrap_or_else(PoisonError::into_inner).push((*declared, series));
    }
}

/// Creates the handles of a metric.
pub(super) trait Register {
    fn new(registry: &Arc<Registry>, declared: &Declared) -> Self;
}

/// All series of a metric, which exist from the start at zero. Indexed by its labels; without any it is the handle itself.
pub struct Family<H, L> {
    handles: Box<[H]>,
    labels: PhantomData<fn(L)>,
}

impl<H: Handle, L: Labels> Register for Family<H, L> {
    fn new(registry: &Arc<Registry>, declared: &Declared) -> Family<H, L> {
        H::describe(registry, declared);
        let handles: Box<[H]> = L::sets().iter().map(|labels| H::register(registry, declared, labels)).collect();
        H::registered(registry, declared, &handles);
        Family { handles, labels: PhantomData }
    }
}

impl<H, L: Labels> Index<L> for Family<H, L> {
    type Output = H;

    fn index(&self, labels: L) -> &H {
        &self.handles[labels.position()]
    }
}

impl<H> Deref for Family<H, ()> {
    type Target = H;

    fn deref(&self) -> &H {
        &self.handles[0]
    }
}

/// The same, but each series is registered when it first counts: for a family most of whose combinations never occur.
pub struct SparseFamily<H, L> {
    handles: Box<[OnceLock<H>]>,
    registry: Arc<Registry>,
    declared: Declared,
    labels: PhantomData<fn(L)>,
}

impl<L: Labels> Register for SparseFamily<Counter, L> {
    fn new(registry: &Arc<Registry>, declared: &Declared) -> SparseFamily<Counter, L> {
        Counter::describe(registry, declared);
        let handles = L::sets().iter().map(|_| OnceLock::new()).collect();
        SparseFamily { handles, registry: registry.clone(), declared: *declared, labels: PhantomData }
    }
}

impl<L: Labels> SparseFamily<Counter, L> {
    /// The series' handle.
    pub(super) fn at(&self, labels: L) -> &Counter {
        let position = labels.position();
        self.handles[position].get_or_init(|| Counter::register(&self.registry, &self.declared, &L::sets()[position]))
    }
}
