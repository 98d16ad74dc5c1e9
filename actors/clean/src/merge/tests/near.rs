//! What counts as a near duplicate, and what only looks like one to SimHash.

use super::*;
use crate::signature::Signature;

const WORDS: [&str; 24] = [
    "the", "node", "keeps", "a", "copy", "of", "each", "shard", "and", "model", "learns", "from", "pages",
    "that", "people", "wrote", "about", "rivers", "machines", "language", "with", "steps", "in", "order",
];

/// Commands that a manual repeats on each of its pages.
const COMMANDS: &str = "# apt-get update && apt-get install --no-install-recommends postfix\n\
                        # systemctl restart postfix.service && journalctl --unit postfix.service\n\
                        # dpkg-reconfigure --priority=low debconf && dpkg --list | grep postfix\n";

/// Random sentences, other ones for each seed.
fn sentences(seed: u64, count: usize) -> Vec<String> {
    let mut state = seed;
    let mut next = || {
        // Knuth's MMIX generator: any fixed sequence will do.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        WORDS[(state >> 33) as usize % WORDS.len()]
    };
    let mut sentence = || (0..12).map(|_| next()).collect::<Vec<_>>().join(" ") + ".";
    (0..count).map(|_| sentence()).collect()
}

fn documents(texts: impl IntoIterator<Item = String>) -> Vec<RawDocument> {
    let document = |(position, text)| {
        let url = format!("http://example.org/{position}");
        RawDocument { position, url, title: String::new(), text }
    };
    (0..).zip(texts).map(document).collect()
}

/// How many documents are kept where near duplicates overlap by so much.
fn kept(texts: &[String], near_duplicate_overlap: f64) -> u64 {
    let options = CleanOptions { near_duplicate_overlap, ..options() };
    corpus_with(&options, &[documents(texts.to_vec())], 2, &[0]).1.documents_kept
}

fn distance(one: &str, other: &str) -> u32 {
    (Signature::of(one).simhash ^ Signature::of(other).simhash).count_ones()
}

#[test]
fn long_random_pages_of_one_vocabulary_stay() {
    let pages: Vec<String> = (1..=40).map(|seed| sentences(seed, 1500).join("\n")).collect();
    assert!(pages.iter().all(|page| page.len() > 80_000));
    assert!(kept(&pages, 0.0) < 10, "SimHash tells them apart by itself");
    assert_eq!(kept(&pages, CleanOptions::default().near_duplicate_overlap), 40);
}

#[test]
fn a_copy_with_a_tenth_of_its_sentences_changed_is_found() {
    let page = sentences(1, 1500);
    let mut copy = page.clone();
    copy.iter_mut().step_by(10).zip(sentences(2, 150)).for_each(|(sentence, other)| *sentence = other);
    let pages = [page.join("\n"), sentences(3, 1500).join("\n"), copy.join("\n")];
    let (files, figures) = corpus(&[documents(pages)], 1, &[0]);
    assert_eq!(figures.rejected[&Reason::Fault(Fault::NearDuplicate)], 1);
    let rejected: Rejected = serde_json::from_slice(&files.rejected).unwrap();
    assert_eq!(rejected.url, "http://example.org/2");
}

#[test]
fn a_translation_that_shares_the_commands_only_stays() {
    let english = "The commands above install the mail server, start it again, and ask for its settings. \
                   Each of them wants the rights of the administrator and reports what it has done.";
    let other_english = "Never run them on a machine that others depend on before somebody has read the \
                         log, since a server that refuses mail for an hour loses the trust of its users.";
    let chinese = "上面的命令安装邮件服务器，重新启动它，并询问它的设置。每条命令都需要管理员的权限，完成后会报告结果。\
                   在别人依赖的机器上运行之前，请先阅读日志，因为一小时拒收邮件的服务器会失去用户的信任。请务必先在测试环境里\
                   试验这些步骤，确认配置文件没有错误，再把它们应用到正式环境，并且保留一份旧的设置，以便在出错时可以恢复。";
    let page = |prose: &str| COMMANDS.repeat(12) + prose;
    let pages = [english, other_english, chinese].map(page);
    for other in &pages[1..] {
        assert!(distance(&pages[0], other) <= 3, "SimHash tells them apart by itself");
    }
    assert_eq!(kept(&pages, CleanOptions::default().near_duplicate_overlap), 3);
    assert_eq!(kept(&pages, 0.0), 2, "without a look at the overlap one English page goes");
}
