//! Stop strings, found wherever they fall in the text.

use std::ops::Range;

/// Watches text for stop strings and lets through what cannot be part of one.
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    /// Whether a stop string is part of the output.
    include: bool,
    /// The end of the text so far: what may begin a stop string.
    tail: String,
    /// Where the tail is special tokens as they are written: `<|im_end|>` is a stop string like any other, and
    /// no output.
    hidden: Vec<Range<usize>>,
    /// Bytes of the tail that were let through: all of it where stop strings are output anyway.
    shown: usize,
}

/// What a piece of text led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Matched {
    /// This much text is final now.
    Text(String),
    /// This is the end of the output: a stop string was found.
    Stop(String),
}

impl StopMatcher {
    /// No stop string may be empty.
    pub(crate) fn new(stops: Vec<String>, include: bool) -> Self {
        Self { stops, include, tail: String::new(), hidden: Vec::new(), shown: 0 }
    }

    /// Text, and the special token that follows it as that is written; either may be empty.
    pub(crate) fn push(&mut self, piece: String, special: &str) -> Matched {
        if self.stops.is_empty() {
            return Matched::Text(piece);
        }
        self.tail.push_str(&piece);
        self.hidden.push(self.tail.len()..self.tail.len() + special.len());
        self.tail.push_str(special);
        // What ends first has been written first; of those, what began first.
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.tail.find(stop.as_str()).map(|start| (start + stop.len(), start)))
            .min();
        if let Some((end, start)) = found {
            let end = if self.include { end } else { start };
            return Matched::Stop(self.visible(self.shown.min(end)..end));
        }
        let kept = self.tail.len() - self.partial();
        let end = if self.include { self.tail.len() } else { kept };
        let text = self.visible(self.shown..end);
        self.tail.drain(..kept);
        self.hidden.retain_mut(|range| {
            *range = range.start.saturating_sub(kept)..range.end.saturating_sub(kept);
            range.start < range.end
        });
        self.shown = end - kept;
        Matched::Text(text)
    }

    /// A part of the tail without what is hidden in it.
    fn visible(&self, part: Range<usize>) -> String {
        let mut text = String::new();
        let mut from = part.start;
        for hidden in &self.hidden {
            text.push_str(&self.tail[from..hidden.start.clamp(from, part.end)]);
            from = hidden.end.clamp(from, part.end);
        }
        text + &self.tail[from..part.end]
    }

    /// What was held back and turned out to begin no stop string, once the text has ended.
    pub(crate) fn finish(&mut self) -> String {
        let rest = self.visible(self.shown..self.tail.len());
        self.tail.clear();
        self.hidden.clear();
        self.shown = 0;
        rest
    }

    /// Bytes at the end of the tail that begin a stop string.
    fn partial(&self) -> usize {
        let longest = |stop: &String| {
            let limit = (stop.len() - 1).min(self.tail.len());
            (1..=limit).rev().find(|&n| self.tail.as_bytes().ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
        };
        // A piece is whole characters, so a match of bytes that splits a character cannot be completed: it is none.
        let bytes = self.stops.iter().map(longest).max().unwrap_or(0);
        (bytes..=self.tail.len()).find(|&n| self.tail.is_char_boundary(self.tail.len() - n)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], include: bool, pieces: &[&str]) -> (Vec<String>, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()).collect(), include);
        let mut texts = Vec::new();
        for &piece in pieces {
            match matcher.push(piece.to_owned(), "") {
                Matched::Text(text) => texts.push(text),
                Matched::Stop(text) => {
                    texts.push(text);
                    return (texts, true);
                }
            }
        }
        texts.push(matcher.finish());
        (texts, false)
    }

    #[test]
    fn a_stop_inside_a_token_cuts_there() {
        assert_eq!(run(&["STOP"], false, &["a xST", "OPy"]), (vec!["a x".into(), String::new()], true));
        assert_eq!(run(&["STOP"], true, &["a xST", "OPy"]), (vec!["a xST".into(), "OP".into()], true));
        assert_eq!(run(&["STOP"], false, &["aSTOPb"]), (vec!["a".into()], true));
        assert_eq!(run(&["STOP"], true, &["aSTOPb"]), (vec!["aSTOP".into()], true));
    }

    #[test]
    fn what_may_begin_a_stop_waits() {
        assert_eq!(
            run(&["\n\n"], false, &["a\n", "b"]),
            (vec!["a".into(), "\nb".into(), String::new()], false)
        );
        assert_eq!(run(&["\n\n"], false, &["a\n"]), (vec!["a".into(), "\n".into()], false));
        assert_eq!(run(&["\n\n"], true, &["a\n"]), (vec!["a\n".into(), String::new()], false));
    }

    #[test]
    fn the_stop_that_ends_first_wins() {
        assert_eq!(run(&["bcd", "c"], false, &["abcd"]), (vec!["ab".into()], true));
        assert_eq!(run(&["c", "bc"], false, &["abcd"]), (vec!["a".into()], true));
        assert_eq!(run(&["c", "bc"], true, &["abcd"]), (vec!["abc".into()], true));
    }

    /// As `run`, where a piece in angle brackets is a special token.
    fn run_special(stops: &[&str], include: bool, pieces: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()).collect(), include);
        let mut text = String::new();
        for &piece in pieces {
            let special = piece.starts_with('<') && piece.len() > 1;
            let (plain, written) = if special { ("", piece) } else { (piece, "") };
            match matcher.push(plain.to_owned(), written) {
                Matched::Text(more) => text.push_str(&more),
                Matched::Stop(more) => return (text + &more, true),
            }
        }
        (text + &matcher.finish(), false)
    }

    #[test]
    fn a_special_token_stops_and_is_not_shown() {
        for include in [false, true] {
            assert_eq!(
                run_special(&["<end>"], include, &["a", "<go>", "b", "<end>", "c"]),
                ("ab".into(), true)
            );
            assert_eq!(run_special(&[], include, &["a", "<end>", "b"]), ("ab".into(), false));
            // Nothing is hidden of what only reads like a special token.
            let shown = if include { "a<end>" } else { "a" };
            assert_eq!(run_special(&["<end>"], include, &["a", "<", "end>", "c"]), (shown.into(), true));
        }
    }

    #[test]
    fn a_stop_may_hold_a_special_token_and_text() {
        let pieces = ["a", "\n", "<go>", "us", "er", "b"];
        for stops in [&["\n<go>user"][..], &["<go>user", "user"], &["\n<go>us"]] {
            let kept = if stops[0].starts_with('\n') { "a" } else { "a\n" };
            assert_eq!(run_special(stops, false, &pieces), (kept.into(), true), "{stops:?}");
            let whole = if stops[0].ends_with("user") { "a\nuser" } else { "a\nus" };
            assert_eq!(run_special(stops, true, &pieces), (whole.into(), true), "{stops:?}");
        }
        // What was held back for it is shown when it does not come, and the token is not.
        assert_eq!(run_special(&["\n<go>system"], false, &pieces), ("a\nuserb".into(), false));
        assert_eq!(run_special(&["\n<go>system"], true, &pieces), ("a\nuserb".into(), false));
        assert_eq!(run_special(&["<go>no"], false, &["a", "<go>"]), ("a".into(), false));
    }

    #[test]
    fn any_split_gives_the_same_text() {
        let text = "αβ abab ababc é\u{1F980} end";
        for stops in [&["abc"][..], &["ababc", "é"], &["\u{1F980}"], &["no", "match"], &["d"]] {
            for include in [false, true] {
                let whole = run(stops, include, &[text]);
                let chars: Vec<String> = text.chars().map(String::from).collect();
                for size in 1..5 {
                    let pieces: Vec<String> = chars.chunks(size).map(<[String]>::concat).collect();
                    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                    let split = run(stops, include, &pieces);
                    assert_eq!(
                        (split.0.concat(), split.1),
                        (whole.0.concat(), whole.1),
                        "{stops:?} {include} {size}"
                    );
                }
            }
        }
    }
}
