//! Whether a job's plans compute what one rank computes: `sixfold verify-plan`, and the check before a job
//! is started.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sixfold_coordinator::job::{JobSpec, StageSpec};
use sixfold_train::{TrainOptions, Verified, VerifyError, VerifyPlanError, verify_plan};

use super::{jobs, print_json, table};
use crate::cli::VerifyPlanArgs;

/// The kind of the stages that have a plan.
const TRAIN: &str = "train";
/// Plans of more ranks are only verified when asked for: every rank is a thread here.
const RANKS_MAX: usize = 64;

/// What came of a stage's plan.
struct Verdict {
    stage: String,
    plan: String,
    outcome: Outcome,
    seconds: f64,
}

enum Outcome {
    /// The plan has one rank.
    Alone,
    /// All ranks computed what one rank does.
    Same(Verified),
    /// They did not, or could not be compared.
    Refused(VerifyPlanError),
}

/// `sixfold verify-plan JOB.toml`.
pub(crate) async fn run(args: VerifyPlanArgs) -> Result<()> {
    let stages = training_stages(&jobs::compile(&args.job)?)?;
    if stages.is_empty() {
        bail!("{} has no stage of kind `{TRAIN}`: there is no plan to verify", args.job.file.display());
    }
    let verdicts = verify(stages).await?;
    if args.json {
        print_json(&to_json(&verdicts));
    } else {
        verdicts.iter().for_each(show);
    }
    check(&verdicts)
}

/// Verifies the plans of a job's training stages that did not ask to be left out, before the job starts.
///
/// # Errors
/// A plan that computes something else than one rank, with the first number that differs.
pub(crate) async fn before_start(spec: &JobSpec, tell: bool) -> Result<()> {
    ahead_of(training_stages(spec)?, tell).await.context(
        "the job was not started (`--no-verify-plan`, or `verify_plan = false` in the stage, starts it anyway)",
    )
}

/// Verifies the plan that a stage is to get while its job runs, unless it asks not to.
///
/// # Errors
/// As [`before_start`].
pub(crate) async fn before_change(stage: &StageSpec, tell: bool) -> Result<()> {
    let options = serde_json::from_str(&stage.options_json)?;
    let verifying = ahead_of(vec![(stage.name.clone(), options)], tell);
    verifying.await.context("the plan stays as it is (`--no-verify-plan` changes it anyway)")
}

async fn ahead_of(mut stages: Vec<(String, TrainOptions)>, tell: bool) -> Result<()> {
    stages.retain(|(name, options)| {
        let ranks = options.plan().world_size();
        if options.verify_plan && ranks > RANKS_MAX {
            eprintln!("stage `{name}`: a plan of {ranks} ranks; `sixfold verify-plan` verifies it");
        }
        options.verify_plan && (2..=RANKS_MAX).contains(&ranks)
    });
    let verdicts = verify(stages).await?;
    check(&verdicts)?;
    for Verdict { stage, plan, seconds, .. } in verdicts.iter().filter(|_| tell) {
        eprintln!("stage `{stage}`: {plan} has the bits of one rank (verified in {seconds:.1} s)");
    }
    Ok(())
}

fn training_stages(spec: &JobSpec) -> Result<Vec<(String, TrainOptions)>> {
    let read = |stage: &StageSpec| Ok((stage.name.clone(), serde_json::from_str(&stage.options_json)?));
    spec.stages.iter().filter(|stage| stage.kind == TRAIN).map(read).collect()
}

/// Computes on a thread that may block.
async fn verify(stages: Vec<(String, TrainOptions)>) -> Result<Vec<Verdict>> {
    let verify_all = move || stages.into_iter().map(verify_stage).collect();
    tokio::task::spawn_blocking(verify_all).await.context("the plan's verification broke off")
}

fn verify_stage((stage, options): (String, TrainOptions)) -> Verdict {
    let (since, plan) = (Instant::now(), options.plan());
    let outcome = match plan.world_size() {
        1 => Outcome::Alone,
        _ => verify_plan(&options).map_or_else(Outcome::Refused, Outcome::Same),
    };
    Verdict { stage, plan: plan.to_string(), outcome, seconds: since.elapsed().as_secs_f64() }
}

/// The first plan that was refused fails the command.
fn check(verdicts: &[Verdict]) -> Result<()> {
    for Verdict { stage, plan, outcome, .. } in verdicts {
        match outcome {
            Outcome::Refused(error @ VerifyPlanError::Verify(VerifyError::Differs(_))) => {
                bail!("stage `{stage}`: {plan} does not compute what one rank computes: {error}")
            }
            Outcome::Refused(error) => bail!("stage `{stage}`: {plan} cannot be verified: {error}"),
            Outcome::Alone | Outcome::Same(_) => {}
        }
    }
    Ok(())
}

fn show(verdict: &Verdict) {
    let Verdict { stage, plan, outcome, seconds } = verdict;
    match outcome {
        Outcome::Alone => println!("stage `{stage}`: {plan} is one rank; there is nothing to compare"),
        // The command ends with the reason.
        Outcome::Refused(_) => println!("stage `{stage}`: {plan} is refused"),
        Outcome::Same(verified) => {
            println!("stage `{stage}`: {plan} has the bits of one rank ({seconds:.2} s)");
            let Verified { layout, tensors, parameters, numbers, steps, losses, .. } = verified;
            if layout.stages() > 1 {
                println!("  pipeline stages of the small model: {layout}");
            }
            println!(
                "  compared: {tensors} tensors of {parameters} parameters; {numbers} gradients, weights and \
                 moments in {steps} steps, and {} losses on each rank\n",
                losses.len()
            );
            table::print(&["rank", "place", "parameters", "bytes sent", "a ring's bytes"], &rows(verified));
        }
    }
}

fn rows(verified: &Verified) -> Vec<Vec<String>> {
    let of_rank = |rank: &sixfold_train::VerifiedRank| {
        let place = verified.plan.coordinates(rank.rank);
        let (sent, ring) = (rank.bytes_sent.to_string(), rank.ring_bytes.to_string());
        vec![rank.rank.0.to_string(), place.to_string(), rank.parameters.to_string(), sent, ring]
    };
    verified.ranks.iter().map(of_rank).collect()
}

fn to_json(verdicts: &[Verdict]) -> Value {
    let stage = |verdict: &Verdict| {
        let Verdict { stage, plan, outcome, seconds } = verdict;
        let mut object = json!({"stage": stage, "plan": plan, "seconds": seconds, "same_bits": true});
        match outcome {
            Outcome::Alone => object["ranks"] = json!([]),
            Outcome::Same(verified) => {
                let Verified { layout, tensors, parameters, numbers, steps, losses, ranks, .. } = verified;
                for (name, figure) in [
                    ("stage_layers", json!(layout.stage_layers())),
                    ("virtual_stages", json!(layout.chunks())),
                    ("tensors", json!(tensors)),
                    ("parameters", json!(parameters)),
                    ("numbers_compared", json!(numbers)),
                    ("steps", json!(steps)),
                    ("losses", json!(losses)),
                    ("ranks", json!(ranks)),
                ] {
                    object[name] = figure;
                }
            }
            Outcome::Refused(error) => {
                object["same_bits"] = json!(false);
                object["error"] = json!(error.to_string());
                if let VerifyPlanError::Verify(VerifyError::Differs(difference)) = error {
                    object["difference"] = json!(difference);
                }
            }
        }
        object
    };
    let same = !verdicts.iter().any(|verdict| matches!(verdict.outcome, Outcome::Refused(_)));
    json!({"same_bits": same, "stages": verdicts.iter().map(stage).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use sixfold_train::{Difference, Found};

    use super::*;

    fn verdict(outcome: Outcome) -> Verdict {
        Verdict { stage: "train".into(), plan: "dp1·tp2·pp1".into(), outcome, seconds: 0.5 }
    }

    fn refused() -> Verdict {
        let found = Found::Missing { tensor: "model.norm.weight".into(), shard: 0 };
        let difference = Difference { rank: Default::default(), step: None, found };
        let error = VerifyError::Differs(Box::new(difference));
        verdict(Outcome::Refused(VerifyPlanError::Verify(error)))
    }

    /// `main` ends with code 1 where a command returns an error.
    #[test]
    fn a_plan_that_differs_fails_the_command_and_names_the_tensor() {
        assert!(check(&[verdict(Outcome::Alone)]).is_ok());
        let verdicts = [verdict(Outcome::Alone), refused()];
        let error = check(&verdicts).unwrap_err().to_string();
        for word in ["stage `train`", "dp1·tp2·pp1", "rank 0", "model.norm.weight"] {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
        let object = to_json(&verdicts);
        assert_eq!((&object["same_bits"], &object["stages"][0]["same_bits"]), (&json!(false), &json!(true)));
        assert_eq!(object["stages"][1]["difference"]["found"]["missing"]["tensor"], "model.norm.weight");
    }

    fn job(options: &str) -> JobSpec {
        let source = format!(
            "name = \"x\"\n[stage.data]\nkind = \"import\"\ntext = \"/x\"\n[stage.tokens]\nkind = \"tokenize\"\n\
             inputs = [\"data\"]\n[stage.train]\nkind = \"train\"\ninputs = [\"tokens\"]\n{options}"
        );
        crate::job::compile("job.toml", &source, &[]).unwrap()
    }

    #[tokio::test]
    async fn the_plans_of_a_job_are_verified() {
        let spec = job("tensor_parallel = 2\npipeline_parallel = 2\n");
        let verdicts = verify(training_stages(&spec).unwrap()).await.unwrap();
        check(&verdicts).unwrap();
        before_start(&spec, false).await.unwrap();
        let stage = &to_json(&verdicts)["stages"][0];
        assert_eq!((&stage["plan"], &stage["same_bits"]), (&json!("dp1·tp2·pp2"), &json!(true)));
        assert_eq!((&stage["virtual_stages"], &stage["stage_layers"]), (&json!(1), &json!([3, 1])));
        assert!(stage["numbers_compared"].as_u64() > stage["parameters"].as_u64());
        let Outcome::Same(verified) = &verdicts[0].outcome else { panic!("{stage}") };
        let rows = rows(verified);
        assert_eq!(rows[3][..2], ["3", "data 0, pipeline stage 1, tensor 1"]);
        assert!(rows.iter().all(|row| row[3].parse::<u64>().unwrap() > 0));
    }

    #[tokio::test]
    async fn a_plan_of_one_rank_needs_no_verification() {
        let verdicts = verify(training_stages(&job("")).unwrap()).await.unwrap();
        assert!(matches!(verdicts[0].outcome, Outcome::Alone));
        assert_eq!(to_json(&verdicts)["same_bits"], true);
    }

    /// A stage that cannot be verified tells whether it was tried.
    #[tokio::test]
    async fn a_stage_may_ask_not_to_be_verified() {
        for (verify_plan, starts) in [(true, false), (false, true)] {
            let mut spec = job("tensor_parallel = 2\n");
            let stage = spec.stages.iter_mut().find(|stage| stage.kind == TRAIN).unwrap();
            let mut options: TrainOptions = serde_json::from_str(&stage.options_json).unwrap();
            (options.tensor_parallel, options.verify_plan) = (3, verify_plan);
            stage.options_json = serde_json::to_string(&options).unwrap();
            let result = before_start(&spec, false).await;
            assert_eq!(result.is_ok(), starts, "{result:?}");
            if let Err(error) = result {
                let said = format!("{error:#}");
                assert!(said.contains("--no-verify-plan") && said.contains("power of two"), "{said}");
            }
        }
    }
}
