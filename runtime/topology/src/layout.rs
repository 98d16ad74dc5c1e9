//! Which layers each stage of a pipeline holds: [`PipelineLayout`].

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// What the parts of a model cost beside each other, in operations a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageCosts {
    /// The embedding, before the first layer.
    pub input: u64,
    /// One decoder layer.
    pub layer: u64,
    /// The head, after the last layer.
    pub output: u64,
}

/// The cut of a model's layers into virtual stages, and their owners.
///
/// A pipeline stage has one chunk of layers or several. Virtual stages are chunks in the order of the model: the first
/// chunks of all stages, then their second chunks, so that chunk `c` of stage `s` is virtual stage `c * stages + s`
/// and a micro-batch goes around the ring of stages once for each chunk. The first virtual stage also has the
/// embedding, the last one the head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineLayout {
    stages: usize,
    /// Layers of each virtual stage.
    lengths: Vec<usize>,
}

/// Layers cannot be laid out as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A number is zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// A stage cannot take turns with itself.
    #[error("virtual_stages is {virtual_stages}; with one pipeline stage it must be 1")]
    Alone {
        /// Chunks of the only stage.
        virtual_stages: usize,
    },
    /// Fewer layers than virtual stages.
    #[error(
        "{stages} pipeline stages of {virtual_stages} virtual stages each need as many layers; there are {layers}"
    )]
    TooFewLayers {
        /// Pipeline stages.
        stages: usize,
        /// Chunks of each.
        virtual_stages: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// Lengths for another number of stages.
    #[error(
        "stage_layers has {found} numbers; {stages} pipeline stages of {virtual_stages} virtual stage(s) each need {}",
        stages * virtual_stages
    )]
    Count {
        /// Lengths given.
        found: usize,
        /// Pipeline stages.
        stages: usize,
        /// Chunks of each.
        virtual_stages: usize,
    },
    /// Lengths for another number of layers.
    #[error("stage_layers has {found} layers together; the model has {layers}")]
    Sum {
        /// Their sum.
        found: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// A virtual stage that would only hand on what it receives.
    #[error(
        "stage_layers gives virtual stage {virtual_stage} no layer; only the first, which has the embedding, and the \
         last, which has the head, may have none"
    )]
    Empty {
        /// The virtual stage, counted from 0.
        virtual_stage: usize,
    },
}

impl PipelineLayout {
    /// Virtual stages of the lengths given, in the order of the model, over all of its `layers`.
    ///
    /// # Errors
    /// [`LayoutError`] if the lengths are not as many as the virtual stages, do not add up, or leave one with nothing.
    pub fn new(
        stages: usize,
        virtual_stages: usize,
        stage_layers: &[usize],
        layers: usize,
    ) -> Result<Self, LayoutError> {
        check(stages, virtual_stages)?;
        let found = stage_layers.len();
        if stages.checked_mul(virtual_stages) != Some(found) {
            return Err(LayoutError::Count { found, stages, virtual_stages });
        }
        let sum = stage_layers.iter().fold(0_usize, |sum, layers| sum.saturating_add(*layers));
        if sum != layers {
            return Err(LayoutError::Sum { found: sum, layers });
        }
        let inner = 1..found.saturating_sub(1);
        if let Some(virtual_stage) = inner.into_iter().find(|stage| stage_layers[*stage] == 0) {
            return Err(LayoutError::Empty { virtual_stage });
        }
        Ok(Self { stages, lengths: stage_layers.to_vec() })
    }

    /// At least one layer for each virtual stage, and the others where they cost least: for the pipeline stage that
    /// has the least to do, and there for the chunk that has; of equal ones for the last, which keeps fewer
    /// activations. So stages with the embedding or the head have fewer layers, the more these cost.
    ///
    /// # Errors
    /// [`LayoutError`] if there are fewer layers than virtual stages.
    pub fn balanced(
        stages: usize,
        virtual_stages: usize,
        layers: usize,
        costs: StageCosts,
    ) -> Result<Self, LayoutError> {
        check(stages, virtual_stages)?;
        let chunks = stages.checked_mul(virtual_stages).filter(|chunks| *chunks <= layers);
        let Some(chunks) = chunks else {
            return Err(LayoutError::TooFewLayers { stages, virtual_stages, layers });
        };
        let mut layout = Self { stages, lengths: vec![1; chunks] };
        for _ in chunks..layers {
            let chunk_costs = layout.costs(costs);
            let of_stage = |at: usize| chunk_costs.iter().skip(at % stages).step_by(stages).sum::<u64>();
            let least = (0..chunks).rev().min_by_key(|&at| (of_stage(at), chunk_costs[at]));
            layout.lengths[least.unwrap_or(0)] += 1;
        }
        Ok(layout)
    }

    /// Pipeline stages.
    pub fn stages(&self) -> usize {
        self.stages
    }

    /// Chunks of layers that each stage has.
    pub fn chunks(&self) -> usize {
        self.lengths.len() / self.stages
    }

    /// How many layers each virtual stage has, in the order of the model.
    pub fn stage_layers(&self) -> &[usize] {
        &self.lengths
    }

    /// Layers of each chunk of a pipeline stage, in order, each with its virtual stage.
    pub fn of_stage(&self, stage: usize) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        (stage..self.lengths.len()).step_by(self.stages).map(|at| (at, self.layers(at)))
    }

    /// Layers of a virtual stage.
    ///
    /// # Panics
    /// If there is no such virtual stage.
    pub fn layers(&self, virtual_stage: usize) -> Range<usize> {
        let start = self.lengths[..virtual_stage].iter().sum();
        start..start + self.lengths[virtual_stage]
    }

    /// What each virtual stage costs.
    pub fn costs(&self, costs: StageCosts) -> Vec<u64> {
        let of = |layers: &usize| costs.layer.saturating_mul(*layers as u64);
        let mut all: Vec<u64> = self.lengths.iter().map(of).collect();
        if let Some(first) = all.first_mut() {
            *first = first.saturating_add(costs.input);
        }
        if let Some(last) = all.last_mut() {
            *last = last.saturating_add(costs.output);
        }
        all
    }
}

fn check(stages: usize, virtual_stages: usize) -> Result<(), LayoutError> {
    match (stages, virtual_stages) {
        (0, _) => Err(LayoutError::Zero("pipeline_parallel")),
        (_, 0) => Err(LayoutError::Zero("virtual_stages")),
        (1, 2..) => Err(LayoutError::Alone { virtual_stages }),
        _ => Ok(()),
    }
}

impl fmt::Display for PipelineLayout {
    /// The layers of each virtual stage, such as `7+8+8+5 layers`, and how many each stage has of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths: Vec<String> = self.lengths.iter().map(usize::to_string).collect();
        write!(f, "{} layers", lengths.join("+"))?;
        if self.chunks() > 1 {
            write!(f, ", {} virtual stages a stage", self.chunks())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAYERS_ONLY: StageCosts = StageCosts { input: 0, layer: 2, output: 0 };

    fn lengths(stages: usize, virtual_stages: usize, layers: usize, output: u64) -> Vec<usize> {
        let costs = StageCosts { output, ..LAYERS_ONLY };
        PipelineLayout::balanced(stages, virtual_stages, layers, costs).unwrap().lengths
    }

    #[test]
    fn chunks_go_around_the_ring_of_stages() {
        let layout = PipelineLayout::new(2, 2, &[1, 2, 3, 4], 10).unwrap();
        assert_eq!((layout.stages(), layout.chunks()), (2, 2));
        let of = |stage| layout.of_stage(stage).collect::<Vec<_>>();
        assert_eq!((of(0), of(1)), (vec![(0, 0..1), (2, 3..6)], vec![(1, 1..3), (3, 6..10)]));
        assert_eq!(layout.to_string(), "1+2+3+4 layers, 2 virtual stages a stage");
        assert_eq!(PipelineLayout::new(2, 1, &[7, 5], 12).unwrap().to_string(), "7+5 layers");
    }

    #[test]
    fn the_stage_with_the_head_has_fewer_layers() {
        assert_eq!(lengths(2, 1, 8, 0), [4, 4]);
        assert_eq!(lengths(2, 1, 8, 4), [5, 3]);
        assert_eq!(lengths(2, 1, 4, 100), [3, 1]);
        assert_eq!(lengths(4, 1, 28, 6), [7, 8, 8, 5]);
        // What counts is what a stage has in all of its chunks.
        assert_eq!(lengths(2, 2, 8, 2), [2, 2, 2, 2]);
        assert_eq!(lengths(2, 2, 8, 6), [2, 2, 3, 1]);
        let input = StageCosts { input: 4, ..LAYERS_ONLY };
        assert_eq!(PipelineLayout::balanced(2, 1, 8, input).unwrap().lengths, [3, 5]);
    }

    #[test]
    fn says_why_layers_cannot_be_laid_out() {
        let refused = |stages, virtual_stages, lengths: &[usize]| {
            PipelineLayout::new(stages, virtual_stages, lengths, 6).unwrap_err().to_string()
        };
        assert_eq!(
            refused(2, 1, &[6]),
            "stage_layers has 1 numbers; 2 pipeline stages of 1 virtual stage(s) each need 2"
        );
        assert_eq!(refused(2, 1, &[3, 4]), "stage_layers has 7 layers together; the model has 6");
        assert!(refused(4, 1, &[2, 0, 2, 2]).contains("virtual stage 1 no layer"));
        assert_eq!(refused(1, 2, &[3, 3]), "virtual_stages is 2; with one pipeline stage it must be 1");
        assert_eq!(refused(2, 0, &[]), "virtual_stages must be at least 1");
        assert!(refused(usize::MAX, 2, &[6]).contains("stage_layers has 1 numbers"));
        assert!(refused(2, 1, &[usize::MAX, 2]).contains("layers together"));
        let few = PipelineLayout::balanced(2, 4, 6, LAYERS_ONLY).unwrap_err();
        assert_eq!(few, LayoutError::TooFewLayers { stages: 2, virtual_stages: 4, layers: 6 });
        // The embedding or the head alone are something to do.
        assert!(PipelineLayout::new(3, 1, &[0, 6, 0], 6).is_ok());
        assert!(PipelineLayout::new(1, 1, &[6], 6).is_ok());
    }

    proptest! {
        #[test]
        fn every_layer_belongs_to_one_chunk_and_no_stage_costs_a_layer_more_than_another(
            stages in 1_usize..7, virtual_stages in 1_usize..4, more in 0_usize..40, input in 0_u64..5, output in 0_u64..9,
        ) {
            let virtual_stages = if stages == 1 { 1 } else { virtual_stages };
            let layers = stages * virtual_stages + more;
            let costs = StageCosts { input, output, ..LAYERS_ONLY };
            let layout = PipelineLayout::balanced(stages, virtual_stages, layers, costs).unwrap();
            let all: Vec<usize> = (0..stages * virtual_stages).flat_map(|at| layout.layers(at)).collect();
            prop_assert_eq!(all, (0..layers).collect::<Vec<_>>());
            prop_assert!(layout.stage_layers().iter().all(|layers| *layers > 0));
            let chunks = layout.costs(costs);
            let totals: Vec<u64> =
                (0..stages).map(|stage| chunks.iter().skip(stage).step_by(stages).sum()).collect();
            let least = *totals.iter().min().unwrap();
            for (stage, total) in totals.iter().enumerate() {
                // What a stage has more than another it cannot give away: its least, or less than a layer.
                let held: usize = layout.of_stage(stage).map(|(_, layers)| layers.len()).sum();
                prop_assert!(held == virtual_stages || *total <= least + costs.layer);
            }
            prop_assert_eq!(
                PipelineLayout::new(stages, virtual_stages, layout.stage_layers(), layers), Ok(layout)
            );
        }
    }
}
