//! What a process uses, from /proc.

use std::fs;

use anyhow::{Context, Result};

/// Unit of the times in /proc/PID/stat: USER_HZ, 100 on every Linux architecture that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time of this process so far, user and system, in seconds. Its resolution is 10 ms.
///
/// # Errors
/// If /proc cannot be read.
pub fn cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The second field is the program's name in parentheses and may hold spaces.
    let (_, fields) = stat.rsplit_once(')').context("unexpected /proc/self/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<u64, _>>()?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 ticks")]
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Resident memory of a process (`self` or its id), in bytes.
///
/// # Errors
/// If there is no such process.
pub fn resident_bytes(process: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        assert!(resident_bytes("self").unwrap() > 1 << 20);
        let before = cpu_seconds().unwrap();
        let mut state = 1_u64;
        while cpu_seconds().unwrap() < before + 0.02 {
            state = std::hint::black_box(state.wrapping_mul(31));
        }
    }
}
