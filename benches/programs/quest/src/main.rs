//! The circuit of benches/programs in QuEST v3 (complex<double> in two arrays).  quest-circuit QUBITS
//! One JSON line, as circuit.py: a digest of all amplitudes and the seconds.

use quest_sys::{
    controlledPhaseFlip, createQuESTEnv, createQureg, destroyQureg, destroyQuESTEnv, initZeroState, rotateX, rotateY,
};
use std::time::Instant;

/// The angles of circuit.py.
fn angles() -> impl Iterator<Item = f64> {
    let mut seed = 12345u64;
    std::iter::from_fn(move || {
        seed = (seed * 1_103_515_245 + 12345) % (1 << 31);
        Some(0.1 + 2.8 * seed as f64 / (1u64 << 31) as f64)
    })
}

/// FNV-1a over words.
fn digest(hash: u64, amplitudes: &[f64]) -> u64 {
    amplitudes.iter().fold(hash, |hash, x| (hash ^ x.to_bits()).wrapping_mul(0x100_0000_01B3))
}

fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
}

fn main() {
    let qubits: i32 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20);
    let began = Instant::now();
    // SAFETY: QuEST's functions are called as its manual says, and the arrays are as long as the register says.
    let (count, hash) = unsafe {
        let environment = createQuESTEnv();
        let register = createQureg(qubits, environment);
        initZeroState(register);
        let mut angle = angles();
        for q in 0..qubits {
            rotateY(register, q, angle.next().unwrap_or(0.0));
        }
        for q in 0..qubits - 1 {
            controlledPhaseFlip(register, q, q + 1);
        }
        for q in (0..qubits).step_by(2) {
            rotateX(register, q, angle.next().unwrap_or(0.0));
        }
        let count = register.numAmpsTotal as usize;
        let hash = digest(0xCBF2_9CE4_8422_2325, std::slice::from_raw_parts(register.stateVec.real, count));
        let hash = digest(hash, std::slice::from_raw_parts(register.stateVec.imag, count));
        destroyQureg(register, environment);
        destroyQuESTEnv(environment);
        (count, hash)
    };
    println!(
        "{{\"amplitudes\": {count}, \"digest\": \"{hash:016x}\", \"seconds\": {:.3}, \"peak_rss\": {}}}",
        began.elapsed().as_secs_f64(),
        peak_rss()
    );
}
