//! The table of a benchmark, printed and as JSON.

use anyhow::{Context, Result};
use serde::Serialize;
use std::{fs, path::Path};

/// One row. Units are in the strings; `met` is computed from the numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Our figure, or why there is none.
    pub ours: String,
    /// The peer's figure in the same run, or the physical limit, or the recorded constant; empty where there is none.
    pub peer: String,
    /// Ours over the peer's.
    pub ratio: String,
    /// What should be reached.
    pub target: String,
    /// Whether it is.
    pub met: bool,
}

impl Row {
    /// A row that could not be measured.
    pub fn missing(what: &str, target: &str, why: &str) -> Row {
        Row {
            what: what.to_owned(),
            ours: format!("not measured: {why}"),
            peer: String::new(),
            ratio: String::new(),
            target: target.to_owned(),
            met: false,
        }
    }
}

/// The median; the spread as text beside it. 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let n = sorted.len();
    match (sorted.get(n / 2), n.checked_sub(1).and_then(|m| sorted.get(m / 2))) {
        (Some(a), Some(b)) => (a + b) / 2.0,
        _ => 0.0,
    }
}

/// `median (lowest–highest)` with `digits` behind the point.
pub fn spread(values: &[f64], digits: usize) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    format!("{:.digits$} ({low:.digits$}–{high:.digits$})", median(values))
}

/// Prints the rows and writes them to `path`.
pub fn publish(rows: &[Row], path: &Path) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    fs::write(path, serde_json::to_string_pretty(rows)?).with_context(|| format!("cannot write {}", path.display()))?;
    println!("\n| what | ours | peer | ratio | target | met |\n|---|---|---|---|---|---|");
    for r in rows {
        println!("| {} | {} | {} | {} | {} | {} |", r.what, r.ours, r.peer, r.ratio, r.target, if r.met { "yes" } else { "NO" });
    }
    println!("\nwritten to {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 4.0]), 4.0);
        assert_eq!(median(&[1.0, 2.0, 3.0, 10.0]), 2.5);
        assert_eq!(spread(&[1.0, 2.0, 4.0], 1), "2.0 (1.0–4.0)");
    }
}
