//! The machine's NUMA nodes: which there are, how far apart, and on which one the caller runs. From sysfs and getcpu(2). Floor 1:
//! called by the heap, for heaps that change hands, and by the balancing of resources.

use std::sync::OnceLock;

/// Distance of a node to itself, as firmware counts.
pub const LOCAL: u32 = 10;
/// Between different nodes where nothing is known.
const REMOTE: u32 = 20;

/// The nodes and their distances.
#[derive(Debug, PartialEq, Eq)]
pub struct Topology {
    nodes: Vec<i32>,
    /// `distances[i][j]`: from `nodes[i]` to `nodes[j]`.
    distances: Vec<Vec<u32>>,
}

impl Topology {
    /// Their numbers, in order; at least one.
    pub fn nodes(&self) -> &[i32] {
        &self.nodes
    }

    /// From node to node; a node that is not there, or "any" (-1), is as near as the own one.
    pub fn distance(&self, from: i32, to: i32) -> u32 {
        let place = |node: i32| self.nodes.iter().position(|n| *n == node);
        match (place(from), place(to)) {
            (Some(from), Some(to)) => self.distances.get(from).and_then(|row| row.get(to)).copied().unwrap_or(REMOTE),
            _ => LOCAL,
        }
    }

    /// What a directory like /sys/devices/system/node says. A machine without one is a single node.
    fn read(directory: &str) -> Self {
        let text = |path: String| std::fs::read_to_string(path).unwrap_or_default();
        let nodes = list(&text(format!("{directory}/online")));
        if nodes.is_empty() {
            return Self { nodes: vec![0], distances: vec![vec![LOCAL]] };
        }
        let row = |node: &i32| {
            let known = text(format!("{directory}/node{node}/distance"));
            let mut row: Vec<u32> = known.split_whitespace().filter_map(|d| d.parse().ok()).collect();
            row.resize(nodes.len(), REMOTE);
            row
        };
        let distances = nodes.iter().map(row).collect();
        Self { nodes, distances }
    }
}

/// "0-1,4" as numbers.
fn list(text: &str) -> Vec<i32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<i32>().ok()?, last.trim().parse::<i32>().ok()?);
        (first <= last && last - first < 4096).then_some(first..=last)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// This machine's.
pub fn machine() -> &'static Topology {
    static MACHINE: OnceLock<Topology> = OnceLock::new();
    MACHINE.get_or_init(|| Topology::read("/sys/devices/system/node"))
}

/// The node that the calling thread runs on now.
pub fn here() -> i32 {
    let (mut cpu, mut node) = (0u32, 0u32);
    // SAFETY: two numbers of ours; the third argument is unused.
    let failed = unsafe { libc::syscall(libc::SYS_getcpu, &raw mut cpu, &raw mut node, core::ptr::null_mut::<u8>()) };
    if failed == 0 { node as i32 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_machine_of_three_nodes() {
        let dir = std::env::temp_dir().join(format!("qmem-nodes-{}", std::process::id()));
        for (node, distances) in [(0, "10 21 31"), (1, "21 10 21"), (4, "31 21 10")] {
            fs::create_dir_all(dir.join(format!("node{node}"))).unwrap();
            fs::write(dir.join(format!("node{node}/distance")), distances).unwrap();
        }
        fs::write(dir.join("online"), "0-1,4\n").unwrap();
        let found = Topology::read(dir.to_str().unwrap());
        assert_eq!(found.nodes(), [0, 1, 4]);
        assert_eq!((found.distance(0, 4), found.distance(4, 4), found.distance(1, 0), found.distance(0, -1)), (31, 10, 21, 10));
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(Topology::read(dir.to_str().unwrap()).nodes(), [0]);
        assert_eq!(list("x,3-1,7"), [7]);
    }

    #[test]
    fn this_machine_has_the_node_we_are_on() {
        assert!(machine().nodes().contains(&here()));
    }
}
