//! How long syncs of the log and round trips to peers take: histograms of fixed size over the last minutes.

use crate::{peer::client::Peers, store::RaftNode};
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// Buckets per power of two: a percentile is at most 1/8 above the truth.
const PER_OCTAVE: u64 = 8;
/// From 1 µs to beyond an hour.
const BUCKETS: usize = 256;
/// Figures are of the last one to two of these.
const WINDOW: Duration = Duration::from_secs(300);
/// Most peers with figures; far above any cluster.
const MAX_PEERS: usize = 64;
/// How often the round trips to all peers are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(1);
/// A peer that has not answered by then is not measured: it is away, not far.
const MEASURE_LIMIT: Duration = Duration::from_secs(3);

/// Distribution of a duration over the last five to ten minutes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percentiles {
    /// Half took at most this long. Percentiles are at most 1/8 above the truth.
    pub p50: Duration,
    /// 99 of 100 took at most this long.
    pub p99: Duration,
    /// 999 of 1000 took at most this long.
    pub p999: Duration,
    /// The slowest, exactly.
    pub max: Duration,
    /// How many; with none all others are zero.
    pub count: u64,
}

/// What a node has measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// `fdatasync` of the log.
    pub fsync: Percentiles,
    /// Round trips to peers, by node.
    pub peers: Vec<(u64, Percentiles)>,
}

#[derive(Clone)]
struct Counts {
    buckets: [u64; BUCKETS],
    max: Duration,
}

impl Counts {
    const EMPTY: Counts = Counts { buckets: [0; BUCKETS], max: Duration::ZERO };
}

fn bucket(d: Duration) -> usize {
    let micros = u64::try_from(d.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
    let index = if micros < PER_OCTAVE {
        micros
    } else {
        // The top bit chooses the octave, the next three the bucket in it.
        let octave = u64::from(micros.ilog2()) - 3;
        (octave + 1) * PER_OCTAVE + ((micros >> octave) - PER_OCTAVE)
    };
    usize::try_from(index).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

/// Longest duration of a bucket.
fn upper(bucket: usize) -> Duration {
    let index = bucket as u64;
    if index < PER_OCTAVE {
        return Duration::from_micros(index);
    }
    let octave = index / PER_OCTAVE - 1;
    Duration::from_micros(((PER_OCTAVE + index % PER_OCTAVE + 1) << octave) - 1)
}

/// A histogram that forgets.
struct Histogram {
    /// The older one and the one that is filled.
    windows: [Counts; 2],
    since: Instant,
}

impl Histogram {
    fn new() -> Self {
        Histogram { windows: [Counts::EMPTY; 2], since: Instant::now() }
    }

    fn turn(&mut self) {
        let now = Instant::now();
        let passed = now.saturating_duration_since(self.since);
        if passed < WINDOW {
            return;
        }
        let [old, new] = &mut self.windows;
        *old = if passed < WINDOW * 2 { std::mem::replace(new, Counts::EMPTY) } else { Counts::EMPTY };
        *new = Counts::EMPTY;
        self.since = now;
    }

    fn record(&mut self, d: Duration) {
        self.turn();
        let [_, counts] = &mut self.windows;
        if let Some(n) = counts.buckets.get_mut(bucket(d)) {
            *n += 1;
        }
        counts.max = counts.max.max(d);
    }

    fn percentiles(&mut self) -> Percentiles {
        self.turn();
        let [old, new] = &self.windows;
        let max = old.max.max(new.max);
        let counts = || old.buckets.iter().zip(&new.buckets).map(|(a, b)| a + b);
        let count: u64 = counts().sum();
        let at = |per_mille: u64| {
            let rank = count.saturating_mul(per_mille).div_ceil(1000);
            let mut seen = 0;
            let found = counts().position(|n| {
                seen += n;
                seen >= rank
            });
            found.map_or(max, |i| upper(i).min(max))
        };
        match count {
            0 => Percentiles::default(),
            _ => Percentiles { p50: at(500), p99: at(990), p999: at(999), max, count },
        }
    }
}

/// Where durations are recorded. Cheap: a lock that nobody holds for long, no memory per sample.
pub(crate) struct Recorder {
    fsync: Mutex<Histogram>,
    peers: Mutex<BTreeMap<u64, Histogram>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder { fsync: Mutex::new(Histogram::new()), peers: Mutex::default() }
    }
}

impl Recorder {
    /// A sync of the log.
    pub(crate) fn fsync(&self, took: Duration) {
        self.fsync.lock().record(took);
    }

    /// A round trip to a peer.
    pub(crate) fn round_trip(&self, node: u64, took: Duration) {
        let mut peers = self.peers.lock();
        if peers.len() < MAX_PEERS || peers.contains_key(&node) {
            peers.entry(node).or_insert_with(Histogram::new).record(took);
        }
    }

    /// All figures; those of nodes that are not among `members` are forgotten.
    pub(crate) fn timings(&self, members: &[u64]) -> Timings {
        let mut peers = self.peers.lock();
        peers.retain(|id, _| members.contains(id));
        Timings { fsync: self.fsync.lock().percentiles(), peers: peers.iter_mut().map(|(id, h)| (*id, h.percentiles())).collect() }
    }
}

/// Measures the round trips to all members until `closing` turns true or is gone.
pub(crate) async fn measure(recorder: Arc<Recorder>, raft: RaftNode, peers: Arc<Peers>, mut closing: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(MEASURE_EVERY) => {}
            _ = closing.wait_for(|c| *c) => return,
        }
        let me = peers.me().node;
        let others: Vec<u64> = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.nodes().map(|(id, _)| *id).filter(|id| *id != me).collect()
        };
        let ping = |node: u64| {
            let (peers, recorder) = (&peers, &recorder);
            async move {
                if let Ok(Ok(took)) = tokio::time::timeout(MEASURE_LIMIT, peers.ping(node, MEASURE_LIMIT)).await {
                    recorder.round_trip(node, took);
                }
            }
        };
        futures::future::join_all(others.into_iter().map(ping)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[tokio::test(start_paused = true)]
    async fn percentiles_of_known_samples() {
        let recorder = Recorder::default();
        assert_eq!(recorder.timings(&[]), Timings::default());
        for i in 1..=1000 {
            recorder.fsync(Duration::from_micros(i * 10));
        }
        let f = recorder.timings(&[]).fsync;
        assert_eq!((f.count, f.max), (1000, Duration::from_millis(10)));
        for (found, truth) in [(f.p50, 5000), (f.p99, 9900), (f.p999, 9990)] {
            let truth = Duration::from_micros(truth);
            assert!(found >= truth && found <= truth + truth / 8, "{found:?} for {truth:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_is_forgotten() {
        let recorder = Recorder::default();
        recorder.fsync(Duration::from_secs(2));
        tokio::time::advance(WINDOW).await;
        recorder.fsync(Duration::from_millis(1));
        assert_eq!(recorder.timings(&[]).fsync.count, 2);
        tokio::time::advance(WINDOW).await;
        let f = recorder.timings(&[]).fsync;
        assert_eq!((f.count, f.max), (1, Duration::from_millis(1)));
        tokio::time::advance(WINDOW * 2).await;
        assert_eq!(recorder.timings(&[]).fsync, Percentiles::default());
    }

    #[tokio::test(start_paused = true)]
    async fn peers_come_and_go_and_are_bounded() {
        let recorder = Recorder::default();
        for node in 0..1000 {
            recorder.round_trip(node, Duration::from_micros(node));
        }
        assert_eq!(recorder.peers.lock().len(), MAX_PEERS);
        let found = recorder.timings(&[3, 7, 999]).peers;
        assert_eq!(found.iter().map(|(id, p)| (*id, p.count)).collect::<Vec<_>>(), [(3, 1), (7, 1)]);
        recorder.round_trip(999, Duration::from_micros(1));
        assert_eq!(recorder.timings(&[7, 999]).peers.len(), 2);
    }

    proptest! {
        #[test]
        fn a_bucket_holds_what_it_says(nanos in 0u64..3_000_000_000_000) {
            let d = Duration::from_nanos(nanos);
            let b = bucket(d);
            prop_assert!(b < BUCKETS - 1);
            prop_assert!(upper(b) >= d, "{:?} in bucket up to {:?}", d, upper(b));
            prop_assert!(upper(b) <= d + d / 8 + Duration::from_micros(1), "{:?} in bucket up to {:?}", d, upper(b));
            if b > 0 { prop_assert!(upper(b - 1) < d); }
        }
    }
}
