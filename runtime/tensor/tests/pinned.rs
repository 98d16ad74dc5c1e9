//! Threads that have cores of their own: a test program of its own, since it confines its whole process.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use sixfold_tensor::{pin_threads, set_threads, threads};

/// The cores that threads of this process may use, by thread name.
fn allowed(name: &str) -> Vec<BTreeSet<usize>> {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    let named = threads.filter(|path| fs::read_to_string(path.join("comm")).unwrap().starts_with(name));
    named.map(|path| cores(&fs::read_to_string(path.join("status")).unwrap())).collect()
}

/// `Cpus_allowed_list` of a status: numbers and ranges.
fn cores(status: &str) -> BTreeSet<usize> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    list.trim()
        .split(',')
        .flat_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            first.parse().unwrap()..=last.parse::<usize>().unwrap()
        })
        .collect()
}

const CHILD: &str = "PINNED_TEST_CHILD";

#[test]
fn each_thread_has_a_core_and_the_process_keeps_to_them() {
    if std::env::var_os(CHILD).is_some() {
        return pins();
    }
    // In a process of its own, whose leases are nobody else's.
    let folder = std::env::temp_dir().join(format!("sixfold-pinned-test-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let child =
        Command::new(std::env::current_exe().unwrap()).env(CHILD, "1").env("TMPDIR", &folder).status();
    fs::remove_dir_all(&folder).unwrap();
    assert!(child.unwrap().success());
}

fn pins() {
    let here = || cores(&fs::read_to_string("/proc/thread-self/status").unwrap());
    let all = here();
    pin_threads();
    set_threads(1).unwrap();
    assert_eq!(here().len(), 1, "the calling thread computes");
    if all.len() > 1 {
        set_threads(2).unwrap();
        // One of them is the caller's, whoever that is.
        let helpers = || allowed("engine-").into_iter().filter(|cores| cores.len() == 1).collect::<Vec<_>>();
        let end = Instant::now() + Duration::from_secs(30);
        while helpers().is_empty() {
            assert!(Instant::now() < end, "the thread that helps is not pinned");
            std::thread::yield_now();
        }
        let process = here();
        assert_eq!(process.len(), 2);
        assert!(process.is_superset(&helpers()[0]), "the thread that helps has one of the process's cores");
        assert_eq!(std::thread::spawn(here).join().unwrap(), process, "a thread that is started stays there");
    }
    set_threads(all.len() + 1).unwrap();
    assert_eq!((here(), threads()), (all.clone(), all.len() + 1), "more than there are: nothing is pinned");
}
