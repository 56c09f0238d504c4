//! Who gets the next request, and where quota should be: pure functions on what is known of each resource. Called by the manager,
//! under its lock; tested against their definitions.
#![forbid(unsafe_code)]

/// What is balanced: `management_type_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Requests that are held.
    Count,
    /// Amount in use.
    Bytes,
    /// What is free: the most first.
    Free,
    /// Requests that are held at the same endpoint.
    Endpoint,
    /// The program decides.
    Custom,
}

/// Placement: `memory_strategy_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The least loaded.
    LeastLoaded,
    /// The nearest, and of these the least loaded.
    Nearest,
    /// One after the other.
    Interleaved,
    /// Fill one first.
    Packed,
}

/// What is known of one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// In use, and what there is.
    pub used: u64,
    /// As above.
    pub capacity: u64,
    /// Requests that are held.
    pub holds: u64,
    /// Requests that are held at its endpoint, by whichever resource.
    pub at_endpoint: u64,
    /// Its distance from the caller.
    pub distance: u32,
}

impl Load {
    /// What is free.
    pub fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }

    /// The smaller the better; of equals, the one that fewer hold.
    fn by(&self, measure: Measure) -> (u64, u64) {
        let first = match measure {
            Measure::Count | Measure::Custom => self.holds,
            Measure::Bytes => self.used,
            Measure::Free => u64::MAX - self.free(),
            Measure::Endpoint => self.at_endpoint,
        };
        (first, self.holds)
    }
}

/// The resource for a request of `amount`; `after` is the one that got the last. None if it fits nowhere.
pub fn choose(loads: &[Load], amount: u64, measure: Measure, placement: Placement, after: usize) -> Option<usize> {
    let fits = || (0..loads.len()).filter(|i| loads[*i].free() >= amount);
    let load = |i: &usize| loads[*i].by(measure);
    match placement {
        Placement::LeastLoaded => fits().min_by_key(load),
        Placement::Nearest => fits().min_by_key(|i| (loads[*i].distance, load(i))),
        Placement::Interleaved => fits().find(|i| *i > after).or_else(|| fits().next()),
        Placement::Packed => fits().max_by_key(|i| (loads[*i].used, usize::MAX - *i)),
    }
}

/// Capacities with which `amount` fits into one resource, by moving what others have free to the one that has most free. None if
/// all that is free together is not enough.
pub fn gather(loads: &[Load], amount: u64) -> Option<Vec<u64>> {
    let to = (0..loads.len()).max_by_key(|i| (loads[*i].free(), usize::MAX - *i))?;
    let mut capacities: Vec<u64> = loads.iter().map(|load| load.capacity).collect();
    let mut missing = amount.saturating_sub(loads[to].free());
    let mut others: Vec<usize> = (0..loads.len()).filter(|i| *i != to).collect();
    others.sort_by_key(|i| core::cmp::Reverse(loads[*i].free()));
    for i in others {
        let moved = missing.min(loads[i].free());
        capacities[i] -= moved;
        capacities[to] += moved;
        missing -= moved;
    }
    (missing == 0).then_some(capacities)
}

/// Capacities after free quota has gone where it is wanted: half of it by what was registered, half by recent use. The sum stays.
pub fn spread(loads: &[Load], registered: &[u64], recent: &[f64]) -> Vec<u64> {
    let free: u64 = loads.iter().map(Load::free).sum();
    let (by_right, by_use) = (registered.iter().map(|r| *r as f64).sum::<f64>(), recent.iter().sum::<f64>());
    let share = |i: usize| {
        let right = if by_right > 0.0 { registered[i] as f64 / by_right } else { 1.0 / loads.len() as f64 };
        let used = if by_use > 0.0 { recent[i] / by_use } else { right };
        (right + used) / 2.0
    };
    let mut left = free;
    let mut capacities: Vec<u64> = Vec::with_capacity(loads.len());
    for (i, load) in loads.iter().enumerate() {
        let part = ((free as f64 * share(i)) as u64).min(left);
        left -= part;
        // More in use than there is capacity for is possible for a moment after quota has moved away: it keeps what it holds.
        capacities.push(load.used.min(load.capacity) + part);
    }
    if let Some(first) = capacities.first_mut() {
        *first += left; // what rounding left over
    }
    capacities
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(seed: &mut u64, n: usize) -> Vec<Load> {
        let mut next = |bound: u64| {
            *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*seed >> 33) % bound
        };
        let one = |_| {
            let capacity = 1 + next(1000);
            Load { used: next(capacity + 1), capacity, holds: next(9), at_endpoint: next(9), distance: 10 + next(3) as u32 }
        };
        (0..n).map(one).collect()
    }

    #[test]
    fn each_measure_and_placement_by_its_definition() {
        let mut seed = 1;
        for round in 0..20_000 {
            let (n, amount) = (1 + round % 7, (round as u64 * 37) % 600);
            let all = loads(&mut seed, n);
            let fit: Vec<usize> = (0..n).filter(|i| all[*i].capacity - all[*i].used >= amount).collect();
            for measure in [Measure::Count, Measure::Bytes, Measure::Free, Measure::Endpoint] {
                let load = |i: usize| match measure {
                    Measure::Count => all[i].holds as i64,
                    Measure::Bytes => all[i].used as i64,
                    Measure::Free => all[i].used as i64 - all[i].capacity as i64,
                    _ => all[i].at_endpoint as i64,
                };
                let least = choose(&all, amount, measure, Placement::LeastLoaded, 0);
                assert_eq!(least.is_some(), !fit.is_empty());
                let Some(least) = least else { continue };
                assert!(fit.contains(&least) && fit.iter().all(|i| load(least) <= load(*i)));
                let near = choose(&all, amount, measure, Placement::Nearest, 0).unwrap();
                assert!(fit.iter().all(|i| (all[near].distance, load(near)) <= (all[*i].distance, load(*i))));
                let packed = choose(&all, amount, measure, Placement::Packed, 0).unwrap();
                assert!(fit.iter().all(|i| all[*i].used <= all[packed].used));
                let turn = choose(&all, amount, measure, Placement::Interleaved, round % n).unwrap();
                assert!(fit.contains(&turn) && !fit.iter().any(|i| *i > round % n && (*i < turn || turn <= round % n)));
            }
        }
    }

    #[test]
    fn quota_moves_and_its_sum_stays() {
        let mut seed = 2;
        for round in 0..20_000 {
            let all = loads(&mut seed, 1 + round % 6);
            let sum = |capacities: &[u64]| capacities.iter().sum::<u64>();
            let before: Vec<u64> = all.iter().map(|load| load.capacity).collect();
            let free: u64 = all.iter().map(Load::free).sum();
            let amount = (round as u64 * 91) % 2500;
            let gathered = gather(&all, amount);
            assert_eq!(gathered.is_some(), free >= amount);
            if let Some(now) = gathered {
                assert_eq!(sum(&now), sum(&before));
                assert!(all.iter().zip(&now).all(|(load, now)| load.used <= *now));
                assert!(all.iter().zip(&now).any(|(load, now)| now - load.used >= amount));
            }
            let recent: Vec<f64> = all.iter().map(|load| (load.holds * load.used) as f64).collect();
            let now = spread(&all, &before, &recent);
            assert_eq!(sum(&now), sum(&before));
            assert!(all.iter().zip(&now).all(|(load, now)| load.used <= *now));
        }
        let two = [Load { used: 100, capacity: 100, ..Load::default() }, Load { used: 0, capacity: 100, ..Load::default() }];
        assert_eq!(spread(&two, &[100, 100], &[100.0, 0.0]), [175, 25]);
        assert_eq!(spread(&two, &[100, 100], &[0.0, 0.0]), [150, 50]);
    }
}
