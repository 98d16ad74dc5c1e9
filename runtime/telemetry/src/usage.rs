//! What a process uses, from /proc.

use std::{fs, io};

/// Unit of the times in /proc/PID/stat: USER_HZ, 100 on every Linux architecture that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time of this process so far, user and system, in seconds. Its resolution is 10 ms.
///
/// # Errors
/// If /proc cannot be read.
pub fn cpu_seconds() -> io::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The second field is the program's name in parentheses and may hold spaces.
    let (_, fields) = stat.rsplit_once(')').ok_or_else(|| unexpected("/proc/self/stat"))?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<u64, _>>().map_err(io::Error::other)?;
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Resident memory of a process (`self` or its id), in bytes.
///
/// # Errors
/// If there is no such process.
pub fn resident_bytes(process: &str) -> io::Result<u64> {
    status(process, "VmRSS:")
}

/// The most memory that was ever resident of a process (`self` or its id), in bytes.
///
/// # Errors
/// If there is no such process.
pub fn peak_resident_bytes(process: &str) -> io::Result<u64> {
    status(process, "VmHWM:")
}

/// A size in /proc/PID/status.
fn status(process: &str, name: &str) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| unexpected(name))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().map_err(io::Error::other)?;
    Ok(kib * 1024)
}

fn unexpected(what: &str) -> io::Error {
    io::Error::other(format!("{what} has another form than Linux gives it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let resident = resident_bytes("self").unwrap();
        assert!(resident > 1 << 20 && peak_resident_bytes("self").unwrap() >= resident);
        let before = cpu_seconds().unwrap();
        let mut state = 1_u64;
        while cpu_seconds().unwrap() < before + 0.02 {
            state = std::hint::black_box(state.wrapping_mul(31));
        }
    }
}
