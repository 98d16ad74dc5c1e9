//! Runs a crawl as a task: rounds, commits, the result.

use sixfold_artifact::Manifest;
use sixfold_cluster::task::{HostError, Metrics, SavedState, TaskContext, TaskOutput};
use sixfold_wire::id::ArtifactId;
use time::OffsetDateTime;

use crate::campaign::{ArchivedPage, Campaign};
use crate::error::CrawlError;
use crate::options::CrawlOptions;
use crate::segment::{self, SegmentInfo};
use crate::state::CrawlState;
use crate::visit::Visitor;

const STATE_FILE: &str = "state.json";

/// Where a crawl stands after a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundSummary {
    /// Rounds committed.
    pub rounds: u64,
    /// Pages archived.
    pub pages: u64,
    /// Pages that will be archived at most.
    pub pages_max: u64,
    /// Bytes of the pages, unpacked.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Addresses known and not yet asked for.
    pub frontier: u64,
}

/// Crawls until the budget or the frontier is used up, from the last saved state if there is one.
/// `committed` is called after each committed round.
///
/// Blocks its thread while it writes segments: give it a thread of its own.
///
/// # Errors
/// [`CrawlError`]; what is committed stays, and a later run goes on from there.
pub async fn run(
    context: &TaskContext,
    options: CrawlOptions,
    mut committed: impl FnMut(RoundSummary),
) -> Result<TaskOutput, CrawlError> {
    let cancelled = context.cancel.clone();
    let crawl = async {
        let mut campaign = start(context, options).await?;
        let visitor = Visitor::new(campaign.options().clone()).map_err(CrawlError::Fetcher)?;
        read_sitemaps(&mut campaign, &visitor).await?;
        loop {
            let round = campaign.next_round();
            if round.is_empty() {
                return finish(context, campaign).await;
            }
            let outcomes = visitor.visit_round(&round, |host| campaign.host(host).failures).await;
            let pages = campaign.settle(round.into_iter().zip(outcomes));
            commit(context, &mut campaign, &pages).await?;
            committed(summary(&campaign));
        }
    };
    tokio::select! {
        biased;
        () = cancelled.cancelled() => Err(CrawlError::Cancelled),
        result = crawl => result,
    }
}

/// Goes on from the newest saved state. One that cannot be read costs time, not pages: the crawl
/// begins anew.
async fn start(context: &TaskContext, options: CrawlOptions) -> Result<Campaign, CrawlError> {
    let Some(saved) = context.spec.resume.iter().max_by_key(|saved| saved.step) else {
        return Ok(Campaign::begin(options)?);
    };
    match load(context, *saved).await {
        Ok(state) => {
            let (pages, rounds) = (state.pages.len(), state.rounds);
            context.host.log(format!("goes on after round {rounds}, with {pages} pages"));
            Ok(Campaign::resume(options, state)?)
        }
        Err(CrawlError::Host(error @ HostError::Superseded)) => Err(error.into()),
        Err(error) => {
            context.host.log(format!("begins anew, since the saved state cannot be read: {error}"));
            Ok(Campaign::begin(options)?)
        }
    }
}

async fn load(context: &TaskContext, saved: SavedState) -> Result<CrawlState, CrawlError> {
    context.host.fetch(saved.artifact).await?;
    Ok(CrawlState::decode(&context.store.read(saved.artifact, STATE_FILE)?)?)
}

async fn read_sitemaps(campaign: &mut Campaign, visitor: &Visitor) -> Result<(), CrawlError> {
    if campaign.options().sitemaps && !campaign.state().sitemaps_read {
        let seeds = campaign.options().seed_urls()?;
        let pages = visitor.read_sitemaps(&seeds).await;
        campaign.settle_sitemaps(pages);
    }
    Ok(())
}

/// Publishes the segment first, then the state that counts it. A crash between the two leaves a
/// segment that no state names, and its pages are visited again.
async fn commit(
    context: &TaskContext,
    campaign: &mut Campaign,
    pages: &[ArchivedPage],
) -> Result<(), CrawlError> {
    if !pages.is_empty() {
        let segment = publish_segment(context, campaign, pages).await?;
        campaign.add_segment(segment);
    }
    let state = campaign.state();
    let file = context.store.put(STATE_FILE, &state.encode()?)?;
    let mut manifest =
        context.manifest("crawl-state").with("rounds", state.rounds).with("pages", state.pages.len());
    manifest.files.push(file);
    let id = context.host.publish(manifest).await?;
    context.host.save_state(id, state.rounds).await?;
    Ok(())
}

async fn publish_segment(
    context: &TaskContext,
    campaign: &Campaign,
    pages: &[ArchivedPage],
) -> Result<ArtifactId, CrawlError> {
    let user_agent = campaign.options().user_agent_field();
    let info = SegmentInfo {
        index: campaign.state().segments.len(),
        date: OffsetDateTime::now_utc(),
        user_agent: &user_agent,
        obey_robots: campaign.options().obey_robots,
    };
    let file = segment::write(&context.store, info, pages)?;
    let bytes: usize = pages.iter().map(|page| page.page.payload.len()).sum();
    let mut manifest: Manifest = context.manifest("warc").with("pages", pages.len()).with("bytes", bytes);
    manifest.files.push(file);
    Ok(context.host.publish(manifest).await?)
}

async fn finish(context: &TaskContext, campaign: Campaign) -> Result<TaskOutput, CrawlError> {
    let state = campaign.state();
    if state.pages.is_empty() {
        return Err(no_pages(campaign.options(), state));
    }
    // Segments of earlier attempts may lie on other nodes; the result must not name what is lost.
    for &segment in &state.segments {
        context.host.fetch(segment).await?;
    }
    Ok(TaskOutput { artifacts: state.segments.clone(), metrics: metrics(state) })
}

fn no_pages(options: &CrawlOptions, state: &CrawlState) -> CrawlError {
    let counts: Vec<String> = counts(state).map(|(name, count)| format!("{count} {name}")).collect();
    let why = if counts.is_empty() { "nothing was found".to_owned() } else { counts.join(", ") };
    CrawlError::NoPages { why, seeds: options.seeds.join(", ").chars().take(300).collect() }
}

/// Failures and omissions by their names in metrics.
fn counts(state: &CrawlState) -> impl Iterator<Item = (String, u64)> {
    let errors = state.failed.iter().map(|(class, count)| (format!("errors_{}", class.as_str()), *count));
    let skipped =
        state.skipped.iter().map(|(reason, count)| (format!("skipped_{}", reason.as_str()), *count));
    errors.chain(skipped)
}

fn metrics(state: &CrawlState) -> Metrics {
    let mut metrics: Metrics = counts(state).map(|(name, count)| (name, count.into())).collect();
    for (name, count) in [
        ("pages_fetched", state.pages.len() as u64),
        ("bytes", state.bytes),
        ("requests", state.requests),
        ("rounds", state.rounds),
        ("redirects", state.redirects),
        ("listings", state.listings),
        ("hosts", state.hosts.values().filter(|host| host.pages > 0).count() as u64),
        ("errors", state.failed.values().sum()),
        ("frontier_left", state.frontier.len() as u64),
    ] {
        metrics.insert(name.to_owned(), count.into());
    }
    metrics.insert("crawl_blake3".to_owned(), state.crawl_blake3().into());
    metrics
}

fn summary(campaign: &Campaign) -> RoundSummary {
    let state = campaign.state();
    RoundSummary {
        rounds: state.rounds,
        pages: state.pages.len() as u64,
        pages_max: campaign.options().pages_max,
        bytes: state.bytes,
        errors: state.failed.values().sum(),
        frontier: state.frontier.len() as u64,
    }
}

#[cfg(test)]
mod tests;
