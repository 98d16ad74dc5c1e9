//! temporary
use sixfold_artifact::Store;
use sixfold_cluster::task::*;
use sixfold_wire::id::*;
use std::sync::Arc;
#[tokio::main(flavor = "current_thread")]
async fn main() {
    rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap();
    let url = std::env::args().nth(1).unwrap();
    let u = url::Url::parse(&url).unwrap();
    let hp = format!("{}:{}", u.host_str().unwrap(), u.port_or_known_default().unwrap());
    let mut o = sixfold_crawl::CrawlOptions::new([url]);
    o.delay_ms = std::env::args().nth(2).map_or(0, |d| d.parse().unwrap());
    o.allow_private_hosts = if std::env::var_os("NOPRIV").is_some() { vec![] } else { vec![hp] };
    o.pages_max = 100_000;
    let folder = tempfile::tempdir().unwrap().keep();
    let store = Store::open(&folder).unwrap();
    let host = Arc::new(LocalHost::new(store.clone()));
    let spec = TaskSpec {
        id: TaskId { job: JobId(1), phase: 0, index: 0 },
        role: "crawl".into(),
        stage: "crawl".into(),
        count: 1,
        options_json: String::new(),
        inputs: vec![],
        resume: vec![],
    };
    let (c, _r) = TaskContext::new(spec, Epoch(1), NodeName::from("n"), store.clone(), folder.clone(), host);
    let t = std::time::Instant::now();
    let out = sixfold_crawl::run(&c, o, |r| {
        if r.rounds % 10 == 0 {
            eprintln!("{r:?}")
        }
    })
    .await;
    let s = t.elapsed().as_secs_f64();
    println!("{s:.3} s {out:#?}\n{folder:?}");
    for (i, a) in out.map(|o| o.artifacts).unwrap_or_default().iter().enumerate() {
        store.export(*a, &folder.join(format!("out{i}"))).unwrap();
    }
}
