//! What compares two devices: [`Rig`].

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use sixfold_tensor::{Counter, Device, Purpose, Stream};

/// The CPU, and what is compared with it.
pub(crate) struct Rig {
    cpu: Stream,
    other: Stream,
    /// Whether the other is a GPU rather than the host.
    pub(crate) is_fast: bool,
    operations: usize,
    failed: Vec<String>,
}

impl Rig {
    pub(crate) fn new(other: &Device, is_fast: bool) -> Self {
        let cpu = Device::strict_cpu().stream();
        Self { cpu, other: other.stream(), is_fast, operations: 0, failed: Vec::new() }
    }

    /// Compares what `run` returns on both devices, `cases` times with other numbers. Equal numbers are drawn for both.
    pub(crate) fn operation(
        &mut self,
        name: &str,
        cases: u64,
        run: impl Fn(&Stream, &mut Random) -> Vec<Vec<f32>>,
    ) {
        self.against(name, cases, &run, &run);
    }

    /// Compares what `run` returns with what `reference` does on the CPU.
    pub(crate) fn against(
        &mut self,
        name: &str,
        cases: u64,
        reference: impl Fn(&Stream, &mut Random) -> Vec<Vec<f32>>,
        run: impl Fn(&Stream, &mut Random) -> Vec<Vec<f32>>,
    ) {
        self.operations += 1;
        for case in 0..cases {
            let drawn = || Random { counter: Counter::new(17, case, 0, 0, Purpose::ORDER), next: 0 };
            let expected = reference(&self.cpu, &mut drawn());
            let actual = catch_unwind(AssertUnwindSafe(|| run(&self.other, &mut drawn())));
            let difference = match &actual {
                Ok(actual) => difference(&expected, actual),
                Err(_) => Some("panicked".to_owned()),
            };
            if let Some(difference) = difference {
                println!("FAIL {name}, case {case}: {difference}");
                self.failed.push(name.to_owned());
                return;
            }
        }
        println!("pass {name}");
    }

    /// # Panics
    /// An operation failed.
    pub(crate) fn finish(self) {
        println!(
            "{} of {} operations have the bits of the CPU",
            self.operations - self.failed.len(),
            self.operations
        );
        assert!(self.failed.is_empty(), "other bits than on the CPU: {:?}", self.failed);
    }
}

/// The first place where bits differ.
fn difference(expected: &[Vec<f32>], actual: &[Vec<f32>]) -> Option<String> {
    for (output, (expected, actual)) in expected.iter().zip(actual).enumerate() {
        if expected.len() != actual.len() {
            return Some(format!("output {output} has {} elements, not {}", actual.len(), expected.len()));
        }
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        let differ: Vec<usize> = (0..expected.len()).filter(|&i| !same(expected[i], actual[i])).collect();
        if let Some(&at) = differ.first() {
            let (a, b) = (actual[at], expected[at]);
            let (of, count) = (expected.len(), differ.len());
            return Some(format!(
                "output {output} differs at {count} of {of} elements, first at {at}: {a:e} ({:08x}), not {b:e} ({:08x})",
                a.to_bits(),
                b.to_bits()
            ));
        }
    }
    (expected.len() != actual.len()).then(|| "another number of outputs".to_owned())
}

/// Shapes and numbers of a case.
pub(crate) struct Random {
    counter: Counter,
    next: u64,
}

impl Random {
    fn word(&mut self) -> u32 {
        self.next += 1;
        self.counter.word(self.next)
    }

    /// From 1 to `most`.
    pub(crate) fn dim(&mut self, most: usize) -> usize {
        1 + self.below(most)
    }

    /// From 0 to `end - 1`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.word() as usize % end
    }

    pub(crate) fn within(&mut self, range: Range<usize>) -> usize {
        range.start + self.below(range.len())
    }

    pub(crate) fn is(&mut self) -> bool {
        self.word().is_multiple_of(2)
    }

    /// Normally distributed.
    pub(crate) fn normal(&mut self, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        let seed = u64::from(self.word());
        Counter::new(seed, 0, 0, 0, Purpose::INITIALISATION).fill_normal(0, &mut values);
        values
    }

    /// Normally distributed with this deviation. One time in four some of them, few in a row, are infinite, none at all or near an
    /// end.
    pub(crate) fn numbers(&mut self, len: usize, deviation: f32) -> Vec<f32> {
        const RARE: [f32; 8] = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, -3e38, 1e-20];
        let mut values = self.normal(len);
        values.iter_mut().for_each(|value| *value *= deviation);
        if self.below(4) == 0 {
            let places = (self.below(200)..len).step_by(211);
            places.for_each(|place| values[place] = RARE[self.below(RARE.len())]);
        }
        values
    }

    /// Numbers of all kinds: zeros of both signs, denormal ones, ones near the ends.
    pub(crate) fn any_finite(&mut self, len: usize) -> Vec<f32> {
        const RARE: [f32; 8] = [0.0, -0.0, 1e-45, -3e-41, f32::MIN_POSITIVE, -1e-38, 3e38, -1e38];
        let mut values = self.normal(len);
        for value in &mut values {
            let word = self.word();
            match word % 8 {
                0 => *value = RARE[word as usize / 8 % 8],
                1 => *value *= 1e-20,
                _ => (),
            }
        }
        values
    }

    /// As [`Self::any_finite`], some infinite or none at all.
    pub(crate) fn any(&mut self, len: usize) -> Vec<f32> {
        let mut values = self.any_finite(len);
        for value in &mut values {
            match self.word() % 16 {
                0 => *value = f32::NAN,
                1 => *value = f32::INFINITY,
                2 => *value = f32::NEG_INFINITY,
                _ => (),
            }
        }
        values
    }
}
