//! What bad input is answered: by the command line, by the coordinator's door, by the gateway.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use sixfold_tests::{output, refusal, result, sixfold};

/// A coordinator that runs until dropped.
struct Coordinator {
    child: Child,
    folder: tempfile::TempDir,
}

impl Coordinator {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = sixfold(&["coordinator", "--with-parent", "--listen", "127.0.0.1:0", "--dir"])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let coordinator = Self { child, folder };
        let since = Instant::now();
        while !coordinator.home().join("coordinator.txt").exists() {
            assert!(since.elapsed() < Duration::from_secs(20), "the coordinator does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        coordinator
    }

    fn home(&self) -> &Path {
        self.folder.path()
    }

    fn home_argument(&self) -> &str {
        self.home().to_str().unwrap()
    }

    fn address(&self) -> String {
        std::fs::read_to_string(self.home().join("coordinator.txt")).unwrap().trim().to_owned()
    }

    fn token(&self, role: &str, more: &[&str]) -> String {
        let mut arguments = vec!["token", "create", "--role", role, "--json", "--home", self.home_argument()];
        arguments.extend(more);
        result(&arguments)["token"].as_str().unwrap().to_owned()
    }

    fn login(&self, token: &str, into: &Path) -> Vec<String> {
        ["login", &self.address(), "--token", token, "--name", "ada", "--home", into.to_str().unwrap()]
            .map(str::to_owned)
            .to_vec()
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn refused(arguments: &[String]) -> String {
    let error = refusal(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    println!("{}: {error}", arguments.join(" "));
    error
}

#[test]
fn tokens_work_as_often_as_they_say_for_the_role_that_they_name() {
    let coordinator = Coordinator::start();
    let homes = tempfile::tempdir().unwrap();
    let home = |name: &str| -> PathBuf { homes.path().join(name) };

    let token = coordinator.token("user", &[]);
    let login = coordinator.login(&token, &home("first"));
    let arguments: Vec<&str> = login.iter().map(String::as_str).collect();
    assert!(output(&arguments).status.success());
    assert!(
        result(&["jobs", "--json", "--home", home("first").to_str().unwrap()]).as_array().unwrap().is_empty()
    );
    assert!(refused(&coordinator.login(&token, &home("second"))).contains("already used 1 times"));

    let twice = coordinator.token("user", &["--uses", "2"]);
    for name in ["third", "fourth"] {
        let login = coordinator.login(&twice, &home(name));
        assert!(output(&login.iter().map(String::as_str).collect::<Vec<_>>()).status.success());
    }
    assert!(refused(&coordinator.login(&twice, &home("fifth"))).contains("already used 2 times"));

    let node = coordinator.token("node", &[]);
    assert!(refused(&coordinator.login(&node, &home("sixth"))).contains("not for a user"));
    let mut cut = node.clone();
    cut.pop();
    assert!(refused(&coordinator.login(&cut, &home("sixth"))).contains("not a join token"));
    let never = [
        "token",
        "create",
        "--role",
        "user",
        "--expires-minutes",
        "0",
        "--home",
        coordinator.home_argument(),
    ];
    assert!(refusal(&never).contains("expired already"));
}

#[test]
fn a_member_of_another_cluster_is_a_stranger() {
    let (ours, other) = (Coordinator::start(), Coordinator::start());
    let token = other.token("user", &[]);
    let homes = tempfile::tempdir().unwrap();
    // The token pins the authority of its own cluster.
    let mut login = other.login(&token, homes.path());
    login[1] = ours.address();
    let error = refused(&login);
    assert!(error.contains("cannot log in"), "{error}");
    // Nor does a certificate of the other cluster open this one's door.
    let stranger = homes.path().join("stranger");
    std::fs::create_dir(&stranger).unwrap();
    std::fs::copy(other.home().join("user.pem"), stranger.join("user.pem")).unwrap();
    std::fs::write(stranger.join("coordinator.txt"), ours.address()).unwrap();
    let error = refusal(&["jobs", "--home", stranger.to_str().unwrap()]);
    assert!(error.contains("does not answer") || error.contains("certificate"), "{error}");
}

#[test]
fn a_node_without_token_or_with_a_taken_address_says_the_way_out() {
    let coordinator = Coordinator::start();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("node");
    let join = ["node", "--join", &coordinator.address(), "--dir", dir.to_str().unwrap()];
    assert!(refusal(&join).contains("sixfold token create --role node"));
    let unspecified = [&join[..], &["--listen", "0.0.0.0:0", "--token", "x"]].concat();
    assert!(refusal(&unspecified).contains("one address of this machine"));
    let user_token = coordinator.token("user", &[]);
    let wrong = [&join[..], &["--token", &user_token]].concat();
    assert!(refusal(&wrong).contains("not for a node"));
    let taken = ["coordinator", "--listen", &coordinator.address(), "--dir", dir.to_str().unwrap()];
    assert!(refusal(&taken).contains("--listen"));
}

#[test]
fn commands_name_what_does_not_exist() {
    let coordinator = Coordinator::start();
    let home = coordinator.home_argument();
    assert!(refusal(&["job", "7", "--home", home]).contains("no job 7"));
    assert!(refusal(&["cancel", "7", "--home", home]).contains("no job 7"));
    assert!(refusal(&["key", "revoke", "x", "--home", home]).contains("no key called `x`"));
    assert!(refusal(&["query", "hello", "--home", home]).contains("no node is up"));
    let fetch = ["artifacts", "--fetch", "00", "--to", home, "--home", home];
    assert!(refusal(&fetch).contains("no artefact begins with `00`"));
    assert!(refusal(&["jobs", "--home", "/no/such/folder"]).contains("sixfold login"));
    assert!(refusal(&["submit", "no.toml", "--home", home]).contains("no.toml"));
    assert!(refusal(&["stages", "trian"]).contains("did you mean `train`?"));
}
