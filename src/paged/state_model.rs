//! Every interleaving of two faulting threads, two workers, an evictor, a reader-ahead and the end of the region over the
//! state machine: a depth-first walk through all states of a small model that uses the machine's own functions. Shows that
//! nobody is left waiting, that no frame is in two places or lost, and that what is mapped is always the data.

#[cfg(test)]
mod walk {
    use super::super::{Act, MAX_PINS, State, Word};
    use std::collections::HashSet;

    const THREADS: usize = 2;
    const ACTORS: usize = 5; // 0, 1: workers; 2: evictor; 3: reader-ahead; 4: free

    /// Where an actor is in its work. Bays are numbered by the actor that took them.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    enum At {
        Idle,
        Load { was: State, for_fault: bool },
        Loaded { for_fault: bool },
        MapIn { bay: u32 },
        MappedIn,
        Held,
        WakeAll,
        MoveOut,
        Store { bay: u32 },
        Settle { bay: u32, to: State },
        End,
    }

    #[derive(Clone, PartialEq, Eq, Hash, Debug)]
    struct World {
        word: u64,
        mapped: bool,
        /// The data stands complete in this bay.
        bay: Option<u32>,
        slot: bool,
        /// Written at least once: then it must be somewhere.
        written: bool,
        waiting: [bool; THREADS],
        event: [bool; THREADS],
        accesses: [u8; THREADS],
        at: [At; ACTORS],
        evictions: u8,
        reads_ahead: u8,
    }

    impl World {
        fn new() -> Self {
            Self {
                word: Word::new(State::Zero).0,
                mapped: false,
                bay: None,
                slot: false,
                written: false,
                waiting: [false; THREADS],
                event: [false; THREADS],
                accesses: [2; THREADS],
                at: [At::Idle; ACTORS],
                evictions: 3,
                reads_ahead: 2,
            }
        }

        fn now(&self) -> Word {
            Word(self.word)
        }

        fn set(&mut self, next: (Word, Act)) -> Act {
            self.word = next.0.0;
            next.1
        }

        fn wake_all(&mut self) {
            self.waiting = [false; THREADS];
        }

        /// A program's thread: touches the chunk, waits if it is not mapped.
        fn thread(&self, i: usize) -> Option<World> {
            if self.waiting[i] || self.accesses[i] == 0 {
                return None;
            }
            let mut w = self.clone();
            if w.mapped {
                w.written = true;
                w.accesses[i] -= 1;
            } else {
                w.waiting[i] = true;
                w.event[i] = true;
            }
            Some(w)
        }

        /// One step of an actor; several where it may choose.
        fn actor(&self, a: usize) -> Vec<World> {
            let mut w = self.clone();
            match self.at[a] {
                At::Idle if a < 2 => {
                    let Some(i) = (0..THREADS).find(|i| w.event[*i]) else { return vec![] };
                    w.event[i] = false;
                    let was = w.now().state();
                    let next = w.now().fault();
                    w.at[a] = match w.set(next) {
                        Act::Fill => At::Load { was, for_fault: true },
                        Act::Map(bay) => At::MapIn { bay },
                        Act::Wake if was == State::Resident => {
                            let Some((held, ())) = w.now().hold_resident() else { panic!("resident a moment ago") };
                            // The other order (it left Resident between) is the walk's own business: both are tried.
                            let mut gave_up = w.clone();
                            gave_up.at[a] = At::WakeAll;
                            w.word = held.0;
                            w.at[a] = At::Held;
                            return vec![w, gave_up];
                        }
                        Act::Wake => At::WakeAll,
                        Act::Wait => At::Idle,
                        act => panic!("{act:?} for a fault in {was:?}"),
                    };
                }
                At::Idle if a == 2 => {
                    let Some(next) = w.now().evict().filter(|_| w.evictions > 0) else { return vec![] };
                    w.evictions -= 1;
                    w.at[a] = match w.set(next) {
                        Act::MoveOut => At::MoveOut,
                        Act::Drop(bay) => At::Settle { bay, to: if w.slot { State::Stored } else { State::Zero } },
                        act => panic!("{act:?}"),
                    };
                }
                At::Idle if a == 3 => {
                    if w.reads_ahead == 0 {
                        return vec![];
                    }
                    let was = w.now().state();
                    let Some(next) = w.now().read_ahead() else { return vec![] };
                    w.reads_ahead -= 1;
                    w.set(next);
                    w.at[a] = At::Load { was, for_fault: false };
                }
                At::Idle => {
                    if w.accesses != [0; THREADS] {
                        return vec![];
                    }
                    let Some(next) = w.now().free() else { return vec![] };
                    if let Act::Drop(bay) = w.set(next) {
                        assert_eq!(w.bay.take(), Some(bay));
                    }
                    w.at[a] = At::End;
                }
                At::Load { was, for_fault } => {
                    assert!(!w.mapped && w.bay.is_none(), "a second copy is being made: {w:?}");
                    assert_eq!(was == State::Stored, w.slot, "{w:?}");
                    assert!(w.slot || !w.written, "written data is read as zeros: {w:?}");
                    let mut failed = w.clone(); // no frame was to be had
                    let next = failed.now().unfilled(was);
                    failed.set(next);
                    failed.at[a] = At::WakeAll;
                    w.bay = Some(a as u32);
                    w.at[a] = At::Loaded { for_fault };
                    return if for_fault { vec![w] } else { vec![w, failed] };
                }
                At::Loaded { for_fault } => {
                    let next = w.now().filled(a as u32, for_fault);
                    w.at[a] = match w.set(next) {
                        Act::Map(bay) => At::MapIn { bay },
                        _ => At::Idle,
                    };
                }
                At::MapIn { bay } => {
                    assert_eq!((w.bay.take(), w.mapped), (Some(bay), false), "{self:?}");
                    w.mapped = true;
                    w.slot = false;
                    w.wake_all();
                    w.at[a] = At::MappedIn;
                }
                At::MappedIn => {
                    w.word = w.now().mapped().0;
                    w.at[a] = At::Idle;
                }
                At::Held => {
                    w.word = w.now().mapped().0;
                    w.at[a] = At::WakeAll;
                }
                At::WakeAll => {
                    w.wake_all();
                    w.at[a] = At::Idle;
                }
                At::MoveOut => {
                    assert!(w.mapped && w.bay.is_none(), "{w:?}");
                    let mut refused = w.clone();
                    refused.word = refused.now().mapped().0;
                    refused.at[a] = At::WakeAll;
                    w.mapped = false;
                    w.bay = Some(a as u32);
                    w.at[a] = At::Store { bay: a as u32 };
                    return vec![w, refused];
                }
                At::Store { bay } => {
                    let mut nowhere = w.clone();
                    let next = nowhere.now().returned(bay);
                    nowhere.set(next);
                    nowhere.at[a] = At::MapIn { bay };
                    w.slot = true;
                    let mut donated = w.clone(); // its frame became a block of the pool
                    donated.bay = None;
                    let next = donated.now().evicted(State::Stored, None);
                    let act = donated.set(next);
                    donated.at[a] = if act == Act::Wake { At::WakeAll } else { At::Idle };
                    w.at[a] = At::Settle { bay, to: State::Stored };
                    return vec![w, nowhere, donated];
                }
                At::Settle { bay, to } => {
                    let next = w.now().evicted(to, Some(bay));
                    w.at[a] = match w.set(next) {
                        Act::Map(bay) => At::MapIn { bay },
                        _ => {
                            w.bay = None;
                            At::Idle
                        }
                    };
                }
                At::End => return vec![],
            }
            vec![w]
        }
    }

    #[test]
    fn no_interleaving_loses_data_or_leaves_anyone_waiting() {
        let mut seen = HashSet::new();
        let mut stack = vec![World::new()];
        let mut ended = 0;
        while let Some(world) = stack.pop() {
            if !seen.insert(world.clone()) {
                continue;
            }
            let mut next: Vec<World> = (0..THREADS).filter_map(|i| world.thread(i)).collect();
            next.extend((0..ACTORS).flat_map(|a| world.actor(a)));
            if next.is_empty() {
                assert_eq!(world.at[4], At::End, "stuck: {world:?}");
                assert!(world.bay.is_none(), "a frame was left behind: {world:?}");
                ended += 1;
            }
            stack.extend(next);
        }
        assert!(seen.len() > 10_000 && ended > 0, "the model explored {} states", seen.len());
    }

    #[test]
    fn pins_keep_a_chunk_and_want_it_back() {
        let resident = Word::new(State::Resident);
        let pinned = resident.pin().unwrap();
        assert!(pinned.evict().is_none() && pinned.pins() == 1 && pinned.unpin().unwrap() == resident);
        let evicting = resident.evict().unwrap().0.pin().unwrap();
        assert_eq!(evicting.evicted(State::Stored, Some(7)).1, Act::Map(7));
        let mut most = resident;
        for _ in 0..MAX_PINS {
            most = most.pin().unwrap();
        }
        assert!(most.pin().is_none() && most.state() == State::Resident);
        assert!(resident.unpin().is_none());
    }
}
