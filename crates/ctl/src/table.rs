//! Tables and ages, as kumactl prints them (reference: §7.6).

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Lines of columns that are three spaces apart.
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 3 - cell.chars().count().min(*width)));
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

/// Go's longest duration, about 292 years.
const LONGEST: i64 = i64::MAX / 1_000_000_000;

/// `5s`, `3m`, `2h`, `7d`, `1y`; `never` for no time and for times to come.
pub fn age(time: Option<&str>, now: OffsetDateTime) -> String {
    let Some(then) = time.and_then(|t| OffsetDateTime::parse(t, &Rfc3339).ok()) else { return "never".to_owned() };
    let seconds = (now - then).whole_seconds();
    if seconds < 0 {
        return "never".to_owned();
    }
    let seconds = seconds.min(LONGEST);
    match seconds {
        s if s < 60 => format!("{s}s"),
        s if s < 3600 => format!("{}m", s / 60),
        s if s < 86_400 => format!("{}h", s / 3600),
        s if s < 365 * 86_400 => format!("{}d", s / 86_400),
        s => format!("{}y", s / (365 * 86_400)),
    }
}

/// How long it is until a time, in the units of [`age`]; `expired` when it has passed, `-` for no time.
pub fn until(time: Option<&str>, now: OffsetDateTime) -> String {
    let Some(then) = time.and_then(|t| OffsetDateTime::parse(t, &Rfc3339).ok()) else { return "-".to_owned() };
    match (then - now).whole_seconds() {
        s if s <= 0 => "expired".to_owned(),
        s if s < 60 => format!("{s}s"),
        s if s < 3600 => format!("{}m", s / 60),
        s if s < 2 * 86_400 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_three_spaces_apart() {
        let rows = [vec!["default".to_owned(), "a".to_owned()], vec!["m".to_owned(), "äö".to_owned()]];
        assert_eq!(render(&["MESH", "NAME"], &rows), "MESH      NAME\ndefault   a\nm         äö\n");
    }

    #[test]
    fn ages() {
        let now = OffsetDateTime::parse("2026-11-24T12:00:00Z", &Rfc3339).unwrap();
        let of = |t: &str| age(Some(t), now);
        assert_eq!(of("2026-11-24T11:59:01.5Z"), "58s");
        assert_eq!(of("2026-11-24T11:00:01Z"), "59m");
        assert_eq!(of("2026-11-23T12:00:01Z"), "23h");
        assert_eq!(of("2025-11-25T12:00:00Z"), "364d");
        assert_eq!(of("2024-11-24T12:00:00Z"), "2y");
        assert_eq!(of("0001-01-01T00:00:00Z"), "292y");
        assert_eq!(of("2026-11-24T12:00:01Z"), "never");
        assert_eq!(age(None, now), "never");
        let left = |t: &str| until(Some(t), now);
        assert_eq!((left("2026-11-24T12:59:00Z"), left("2026-11-25T11:00:00Z"), left("2026-12-24T12:00:00Z")), ("59m".into(), "23h".into(), "30d".into()));
        assert_eq!((left("2026-11-24T12:00:00Z"), until(None, now)), ("expired".into(), "-".into()));
    }
}
