//! What a rank accounts for: [`RankAccount`].

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sixfold_model::Work;
use sixfold_parallel::{Collective, ParameterShare, StepProfile};

/// What a rank held and did, while it runs and at its end. Work, traffic and times are of the attempt.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RankAccount {
    /// The rank.
    pub rank: u32,
    /// Bytes of its parameters.
    pub parameter_bytes: u64,
    /// Bytes of its moments.
    pub moment_bytes: u64,
    /// Floating-point operations that it really did, with what was computed again.
    pub flops: u64,
    /// Bytes that it sent to other ranks.
    pub bytes_sent: u64,
    /// Steps of the attempt.
    pub steps: u64,
    /// States that other nodes took.
    pub commits: u64,
    /// The part of the steps' time in which it waited for its pipeline, measured.
    pub bubble: f64,
    /// The same as scheduled: if all ranks were as fast and nothing took time to arrive.
    pub scheduled_bubble: f64,
    /// Wall time of a step, with what saving took from it.
    pub step_seconds: f64,
    /// Where that time went, over all steps.
    pub time: RankTimes,
    /// Steps, other than the attempt's first, whose batch had not been read when they were to begin.
    pub starved_steps: u64,
    /// GFLOP/s that its machine can do: measured, or as the option `peak_gflops` says.
    pub peak_gflops: f64,
    /// Hardware FLOPs utilization: `flops` as a part of what the machine could have done in that time.
    pub hfu: f64,
    /// Memory of its process, in bytes.
    pub resident_bytes: u64,
    /// The most that it was.
    pub resident_bytes_max: u64,
    /// Bytes of the device's buffers in use.
    pub device_bytes: u64,
    /// The most that they were.
    pub device_bytes_max: u64,
    /// Its parameters by kind.
    pub parameters: ParameterShare,
    /// Its operations by kind.
    pub work: Work,
}

/// Where a rank's time went, in seconds over all steps of the attempt. The parts do not overlap.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RankTimes {
    /// All of it.
    pub seconds: f64,
    /// Passes through the model.
    pub compute_seconds: f64,
    /// Updating the parameters.
    pub optimizer_seconds: f64,
    /// Waiting for batches to be read.
    pub data_wait_seconds: f64,
    /// Copying the state, for commits and checkpoints that are then written beside the next steps.
    pub save_seconds: f64,
    /// Exchanges with other ranks, by their names ([`Collective::name`]); those that there were.
    pub collectives: BTreeMap<String, CollectiveTimes>,
}

/// What collectives of one kind took.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CollectiveTimes {
    /// How often.
    pub calls: u64,
    /// Wall time, in which nothing else was computed.
    pub seconds: f64,
    /// The part of it in which the rank waited for others.
    pub waited_seconds: f64,
    /// Bytes that the rank sent.
    pub bytes_sent: u64,
}

impl RankTimes {
    pub(crate) fn new(all: Duration, profile: &StepProfile, data_wait: Duration, save: Duration) -> Self {
        let collectives = Collective::ALL.into_iter().filter_map(|collective| {
            let spent = profile.of(collective);
            let times = CollectiveTimes {
                calls: spent.calls,
                seconds: spent.wall.as_secs_f64(),
                waited_seconds: spent.waited.as_secs_f64(),
                bytes_sent: spent.bytes_sent,
            };
            (spent.calls > 0).then(|| (collective.name().to_owned(), times))
        });
        Self {
            seconds: all.as_secs_f64(),
            compute_seconds: profile.compute().as_secs_f64(),
            optimizer_seconds: profile.optimizer.as_secs_f64(),
            data_wait_seconds: data_wait.as_secs_f64(),
            save_seconds: save.as_secs_f64(),
            collectives: collectives.collect(),
        }
    }

    /// The parts by name, in the order in which they are shown, and last what is left.
    pub fn parts(&self) -> Vec<(String, f64)> {
        let mut parts = vec![("compute".to_owned(), self.compute_seconds)];
        let of_name =
            |one: Collective| Some((one.name().to_owned(), self.collectives.get(one.name())?.seconds));
        parts.extend(Collective::ALL.into_iter().filter_map(of_name));
        parts.extend([
            ("optimizer".to_owned(), self.optimizer_seconds),
            ("data_wait".to_owned(), self.data_wait_seconds),
            ("save".to_owned(), self.save_seconds),
        ]);
        let named: f64 = parts.iter().map(|(_, seconds)| seconds).sum();
        parts.push(("other".to_owned(), (self.seconds - named).max(0.0)));
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_add_up_to_all_of_the_time() {
        let collectives = [("figures", 1.0), ("tensor_all_reduce", 2.0)].map(|(name, seconds)| {
            (name.to_owned(), CollectiveTimes { calls: 1, seconds, waited_seconds: 0.5, bytes_sent: 8 })
        });
        let times = RankTimes {
            seconds: 10.0,
            compute_seconds: 4.0,
            optimizer_seconds: 1.0,
            data_wait_seconds: 0.25,
            save_seconds: 0.5,
            collectives: collectives.into(),
        };
        let names: Vec<String> = times.parts().into_iter().map(|(name, _)| name).collect();
        let expected = ["compute", "tensor_all_reduce", "figures", "optimizer", "data_wait", "save", "other"];
        assert_eq!(names, expected);
        assert_eq!(times.parts().iter().map(|(_, seconds)| seconds).sum::<f64>(), 10.0);
        assert_eq!(times.parts().last().unwrap().1, 1.25);
    }

    #[test]
    fn an_account_survives_its_way_and_one_of_an_older_rank_is_read() {
        let account = RankAccount { rank: 3, peak_gflops: 40.5, ..RankAccount::default() };
        let text = serde_json::to_string(&account).unwrap();
        assert_eq!(serde_json::from_str::<RankAccount>(&text).unwrap(), account);
        let older: RankAccount = serde_json::from_str(r#"{"rank": 2, "gone": 1}"#).unwrap();
        assert_eq!(older, RankAccount { rank: 2, ..RankAccount::default() });
    }
}
