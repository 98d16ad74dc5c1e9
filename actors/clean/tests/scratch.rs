use sixfold_clean::charset;
use std::io::Read;
use std::path::Path;
fn read_gzip(path: &Path) -> Vec<u8> {
    let mut b = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut b).unwrap();
    b
}
#[test]
fn variants() {
    let folder = Path::new("/work/shared/data/web/article-extraction");
    let truth: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("ground-truth.json")).unwrap()).unwrap();
    for (k, p) in truth.as_object().unwrap() {
        if ["b3c19dd5", "7a664e40", "21486419", "51d066b0"].iter().any(|x| k.starts_with(x)) {
            let page =
                charset::decode(&read_gzip(&folder.join("html").join(format!("{k}.html.gz"))), None).text;
            let t = rs_trafilatura::extract_with_options(&page, &rs_trafilatura::Options::default()).unwrap();
            println!(
                "=== {k} {:?} {:?}\n--- expected {}\n{}\n--- got {}\n{}",
                t.warnings,
                t.metadata.page_type,
                p["articleBody"].as_str().unwrap().len(),
                p["articleBody"].as_str().unwrap().chars().take(700).collect::<String>(),
                t.content_text.len(),
                t.content_text.chars().take(2500).collect::<String>()
            );
        }
    }
    for f in ["zh-CN/apt.html", "zh-CN/sect.apt-get.html", "zh-CN/index.html"] {
        let Ok(b) = std::fs::read(format!("/usr/share/doc/debian-handbook/html/{f}")) else {
            println!("no {f}");
            continue;
        };
        let page = charset::decode(&b, None).text;
        for e in [
            sixfold_clean::extract::Extractor::MainText,
            sixfold_clean::extract::Extractor::Documentation,
            sixfold_clean::extract::Extractor::Body,
        ] {
            let t0 = std::time::Instant::now();
            let x = sixfold_clean::extract::extract(&page, "http://127.0.0.1/", e);
            println!(
                "##### {f} {e:?} {} {} body={} {:?}\n{}",
                x.title,
                x.text.len(),
                x.is_body,
                t0.elapsed(),
                x.text.chars().take(900).collect::<String>()
            );
        }
    }
}
