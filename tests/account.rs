//! The budget's account by itself: what is granted and what is taken never exceed it together, whoever comes first.

use qmem::monitor::account::*;

/// One test, since the account is one: what is granted to paged buffers and what the heap takes exclude each other.
#[test]
fn heap_and_grants_leave_each_other_room() {
    const MIB: usize = 1 << 20;
    set_budget(100 * MIB);
    set_swap(0, false);
    commit(60 * MIB).unwrap();
    assert!(try_charge(Holder::Heap, 40 * MIB) && !try_charge(Holder::Heap, 1));
    let told = charge(Holder::Heap, MIB).unwrap_err();
    assert!(told.message.as_str().contains("were granted 62914560"), "{told}");
    assert!(try_charge(Holder::Frames, 60 * MIB));
    uncharge(Holder::Frames, 60 * MIB);
    uncharge(Holder::Heap, 40 * MIB);
    commit(40 * MIB).unwrap();
    assert!(commit(1).is_err() && !try_charge(Holder::Tables, 1));
    uncommit(100 * MIB);
    // With swap space for all of it, frames to move through are left all the same.
    set_swap(1 << 40, false);
    commit(500 * MIB).unwrap();
    assert!(!try_charge(Holder::Heap, 90 * MIB) && try_charge(Holder::Heap, 84 * MIB));
    uncharge(Holder::Heap, 84 * MIB);
    uncommit(500 * MIB);
    set_swap(0, false);
    for _ in 0..200 {
        let (grant, take) = std::thread::scope(|scope| {
            let grant = scope.spawn(|| commit(60 * MIB).is_ok());
            let take = scope.spawn(|| try_charge(Holder::Heap, 60 * MIB));
            (grant.join().unwrap(), take.join().unwrap())
        });
        assert!(!(grant && take), "both got what only one can have");
        if grant {
            uncommit(60 * MIB);
        }
        if take {
            uncharge(Holder::Heap, 60 * MIB);
        }
    }
    set_budget(usize::MAX);
}
