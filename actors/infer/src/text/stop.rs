//! Stop strings over a stream of text.

/// Looks for stop strings in a text that arrives in pieces, and releases what cannot be part of one.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

/// Text that may be shown, and whether a stop string came after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// The text.
    pub text: String,
    /// A stop string has been seen: nothing follows.
    pub stopped: bool,
}

impl StopStrings {
    /// Looks for any of `stops`; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new(), stopped: false }
    }

    /// Adds a piece. After a stop string nothing more is released.
    pub fn push(&mut self, piece: &str) -> Released {
        if self.stopped {
            return Released { text: String::new(), stopped: true };
        }
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            self.stopped = true;
            return Released { text: std::mem::take(&mut self.held), stopped: true };
        }
        let tail = self.held.split_off(self.held.len() - self.tail_bytes());
        Released { text: std::mem::replace(&mut self.held, tail), stopped: false }
    }

    /// What is still held back, for the end of a text that ended otherwise.
    pub fn finish(self) -> String {
        self.held
    }

    /// Length of the longest end of the held text that begins a stop string.
    fn tail_bytes(&self) -> usize {
        let begins = |stop: &String| {
            let longest = self.held.len().min(stop.len() - 1);
            (1..=longest).rev().find(|&bytes| {
                self.held.as_bytes().ends_with(&stop.as_bytes()[..bytes]) && stop.is_char_boundary(bytes)
            })
        };
        self.stops.iter().filter_map(begins).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(list: &[&str]) -> StopStrings {
        StopStrings::new(&list.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn released(text: &str, stopped: bool) -> Released {
        Released { text: text.to_owned(), stopped }
    }

    #[test]
    fn holds_back_what_may_become_a_stop_string() {
        let mut matcher = stops(&["###", "用户："]);
        assert_eq!(matcher.push("one#"), released("one", false));
        assert_eq!(matcher.push("two##"), released("#two", false));
        assert_eq!(matcher.push("用户"), released("##", false));
        assert_eq!(matcher.push("：secret"), released("", true));
        assert_eq!(matcher.push("more"), released("", true));
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn the_earliest_of_two_wins_and_the_rest_is_flushed() {
        assert_eq!(stops(&["cd", "bcx", "b"]).push("abcd"), released("a", true));
        let mut matcher = stops(&["xyz"]);
        assert_eq!(matcher.push("abxy"), released("ab", false));
        assert_eq!(matcher.finish(), "xy");
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_the_pieces(
            text in "[ab好]{0,30}",
            stop in "[ab好]{1,4}",
            cuts in proptest::collection::vec(1_usize..4, 0..30),
        ) {
            let mut matcher = StopStrings::new(std::slice::from_ref(&stop));
            let mut shown = String::new();
            let mut rest = text.chars();
            for cut in cuts.into_iter().chain([text.len() + 1]) {
                let piece: String = rest.by_ref().take(cut).collect();
                shown += &matcher.push(&piece).text;
            }
            shown += &matcher.finish();
            let expected = text.split_once(&stop).map_or(text.as_str(), |(before, _)| before);
            prop_assert_eq!(shown, expected);
        }
    }
}
