//! Pipeline schedules: the order in which a stage works on the micro-batches of a step.
//!
//! 1F1B is the non-interleaved schedule of PipeDream-Flush (Narayanan et al. 2021, "Memory-efficient
//! pipeline-parallel DNN training", section 3.1): after a warm-up, a stage does one forward and one
//! backward in turn, so that it keeps at most as many activations as there are stages after it,
//! itself included. Backward passes are in ascending order on every stage, as the order of sums
//! requires.

/// One thing that a pipeline stage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipelineOp {
    /// The forward pass of this micro-batch.
    Forward(usize),
    /// The backward pass of this micro-batch.
    Backward(usize),
}

/// The operations of stage `stage` of `stages` over `micro_batches`, in order.
pub fn one_forward_one_backward(stages: usize, stage: usize, micro_batches: usize) -> Vec<PipelineOp> {
    let warm_up = (stages - stage - 1).min(micro_batches);
    let steady = micro_batches - warm_up;
    let mut ops = Vec::with_capacity(2 * micro_batches);
    ops.extend((0..warm_up).map(PipelineOp::Forward));
    for index in 0..steady {
        ops.push(PipelineOp::Forward(warm_up + index));
        ops.push(PipelineOp::Backward(index));
    }
    ops.extend((steady..micro_batches).map(PipelineOp::Backward));
    ops
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs all stages against each other; returns the ops in the order done, or `None` on a deadlock.
    fn simulate(stages: usize, micro_batches: usize) -> Option<Vec<(usize, PipelineOp)>> {
        let schedules: Vec<_> =
            (0..stages).map(|stage| one_forward_one_backward(stages, stage, micro_batches)).collect();
        let mut next = vec![0; stages];
        let mut done = Vec::new();
        while done.len() < 2 * stages * micro_batches {
            let before = done.len();
            for stage in 0..stages {
                let Some(&op) = schedules[stage].get(next[stage]) else { continue };
                let ready = match op {
                    PipelineOp::Forward(_) => stage == 0 || done.contains(&(stage - 1, op)),
                    PipelineOp::Backward(_) => stage + 1 == stages || done.contains(&(stage + 1, op)),
                };
                if ready {
                    done.push((stage, op));
                    next[stage] += 1;
                }
            }
            if done.len() == before {
                return None;
            }
        }
        Some(done)
    }

    proptest! {
        #[test]
        fn every_dependency_is_met_and_every_pass_done_once(stages in 1_usize..7, micro_batches in 1_usize..12) {
            let done = simulate(stages, micro_batches);
            prop_assert!(done.is_some(), "deadlock");
            for stage in 0..stages {
                let ops = one_forward_one_backward(stages, stage, micro_batches);
                let forwards: Vec<_> =
                    ops.iter().filter_map(|op| if let PipelineOp::Forward(m) = op { Some(*m) } else { None }).collect();
                let backwards: Vec<_> =
                    ops.iter().filter_map(|op| if let PipelineOp::Backward(m) = op { Some(*m) } else { None }).collect();
                prop_assert_eq!(&forwards, &(0..micro_batches).collect::<Vec<_>>());
                prop_assert_eq!(&backwards, &forwards);
            }
        }

        #[test]
        fn keeps_no_more_activations_than_stages_remain(stages in 1_usize..7, micro_batches in 1_usize..12) {
            for stage in 0..stages {
                let (mut kept, mut most) = (0_usize, 0);
                let mut seen = vec![false; micro_batches];
                for op in one_forward_one_backward(stages, stage, micro_batches) {
                    match op {
                        PipelineOp::Forward(m) => { seen[m] = true; kept += 1; }
                        PipelineOp::Backward(m) => { prop_assert!(seen[m]); kept -= 1; }
                    }
                    most = most.max(kept);
                }
                prop_assert_eq!(most, micro_batches.min(stages - stage));
            }
        }
    }

    #[test]
    fn first_of_two_stages_runs_one_ahead() {
        use PipelineOp::{Backward, Forward};
        let ops = one_forward_one_backward(2, 0, 3);
        assert_eq!(ops, [Forward(0), Forward(1), Backward(0), Forward(2), Backward(1), Backward(2)]);
        assert_eq!(one_forward_one_backward(2, 1, 2), [Forward(0), Backward(0), Forward(1), Backward(1)]);
    }
}
