//! Findings for people: a line that editors can jump to, then the line of the file with a caret under the place.

use std::fmt::Write as _;

use super::{Finding, Findings, Level, SkippedFile, WhySkipped};
use crate::cluster::files::{ENDINGS, File};
use crate::observe::text::clean;

/// The most characters of a file's line that are shown.
const SHOWN: usize = 120;
/// How many of them stand before the place, if the line is longer.
const BEFORE: usize = 40;
/// How many of the files that are not read are named.
const NAMED: usize = 3;

impl Findings {
    /// All findings, and a closing line.
    pub(in crate::cli) fn text(&self, files: &[File], colour: bool) -> String {
        let mut text = String::new();
        let mut lines = Lines::default();
        for found in &self.findings {
            if lines.file != found.file {
                let file = files.iter().find(|file| file.name == found.file);
                let content = file.and_then(|file| file.content.as_deref().ok()).unwrap_or_default();
                lines = Lines { file: &found.file, rest: std::str::from_utf8(content).unwrap_or_default(), number: 1 };
            }
            finding(&mut text, found, &mut lines, colour);
        }
        text.push_str(&skipped_files(&self.skipped_files));
        let Findings { errors, warnings, policies, pods, skipped, .. } = self;
        let count =
            |number: &usize, one: &str, more: &str| format!("{number} {}", if *number == 1 { one } else { more });
        let _ = writeln!(
            text,
            "{} and {} read, {} of no use, {}, {}",
            count(policies, "policy", "policies"),
            count(pods, "pod", "pods"),
            count(skipped, "object", "objects"),
            count(errors, "error", "errors"),
            count(warnings, "warning", "warnings"),
        );
        text
    }
}

/// Which files were not read, and why; a line for each reason, with the first names.
fn skipped_files(skipped: &[SkippedFile]) -> String {
    let mut text = String::new();
    for (why, reason) in [
        (WhySkipped::Hidden, "hidden".to_owned()),
        (WhySkipped::Ending, format!("of another ending, {ENDINGS} are read")),
        (WhySkipped::Depth, "in too many folders, 8 within each other are read".to_owned()),
    ] {
        let names: Vec<String> = skipped.iter().filter(|file| file.why == why).map(|file| clean(&file.file)).collect();
        if !names.is_empty() {
            let (few, more) = (names.len().min(NAMED), if names.len() > NAMED { ", …" } else { "" });
            let _ = writeln!(text, "not read: {} {reason}: {}{more}", names.len(), names[..few].join(", "));
        }
    }
    text
}

/// The lines of a file, in the order in which findings ask for them.
#[derive(Default)]
struct Lines<'f> {
    file: &'f str,
    /// From the line of this number on.
    rest: &'f str,
    number: u32,
}

impl<'f> Lines<'f> {
    /// A line that is none of those before the last one that was asked for.
    fn line(&mut self, number: u32) -> Option<&'f str> {
        while self.number < number {
            self.rest = self.rest.split_once('\n')?.1;
            self.number += 1;
        }
        self.rest.lines().next()
    }
}

fn finding(text: &mut String, found: &Finding, lines: &mut Lines<'_>, colour: bool) {
    let (on, off) = match (colour, found.level) {
        (false, _) => ("", ""),
        (true, Level::Error) => ("\x1b[1;31m", "\x1b[0m"),
        (true, Level::Warning) => ("\x1b[1;33m", "\x1b[0m"),
    };
    let word = if found.level == Level::Error { "error" } else { "warning" };
    let place = match (found.line, found.column) {
        (Some(line), Some(column)) => format!("{}:{line}:{column}", clean(&found.file)),
        _ => clean(&found.file),
    };
    let (object, said) = (clean(&found.object), clean(&found.text));
    let _ = writeln!(text, "{place}: {on}{word}:{off} {object}: {said} [{}]", found.rule);
    let (Some(line), Some(column)) = (found.line, found.column) else { return };
    let Some(written) = lines.line(line) else { return };
    let (shown, before) = cut(written, column as usize);
    let number = line.to_string();
    let blank = " ".repeat(number.len());
    let _ = writeln!(text, "  {number} | {shown}\n  {blank} | {}{on}^{off}", " ".repeat(before));
}

/// What is shown of a line, and how many characters of that stand before the place.
fn cut(line: &str, column: usize) -> (String, usize) {
    // The line may be megabytes, all of the file.
    let all = line.chars().count();
    let at = column.saturating_sub(1).min(all);
    let from = if all > SHOWN { at.saturating_sub(BEFORE).min(all - SHOWN) } else { 0 };
    let to = (from + SHOWN).min(all);
    let part = |from: usize, to: usize| clean(&line.chars().skip(from).take(to - from).collect::<String>());
    let head = format!("{}{}", if from > 0 { "…" } else { "" }, part(from, at));
    let tail = format!("{}{}", part(at, to), if to < all { "…" } else { "" });
    (format!("{head}{tail}"), head.chars().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caret_stands_under_the_place_however_long_the_line_is() {
        assert_eq!(cut("  a: b", 3), ("  a: b".to_owned(), 2));
        assert_eq!(cut("a", 9), ("a".to_owned(), 1));
        let (shown, before) = cut(&format!("{}HERE{}", "x".repeat(1000), "y".repeat(1000)), 1001);
        assert_eq!(&shown.chars().skip(before).take(4).collect::<String>(), "HERE");
        assert_eq!(
            (shown.chars().count(), shown.chars().next(), shown.chars().last()),
            (SHOWN + 2, Some('…'), Some('…'))
        );
    }

    #[test]
    fn each_finding_shows_its_own_line() {
        let mut lines = Lines { file: "a", rest: "one\r\n\nthree\nfour", number: 1 };
        let found: Vec<Option<&str>> = [1, 1, 2, 4, 4, 5].map(|number| lines.line(number)).to_vec();
        assert_eq!(found, [Some("one"), Some("one"), Some(""), Some("four"), Some("four"), None]);
    }

    #[test]
    fn control_characters_of_a_file_reach_no_terminal() {
        let (shown, before) = cut("\u{1b}[2J: x", 7);
        assert_eq!((shown.as_str(), before), ("\\u{1b}[2J: x", 11));
    }
}
