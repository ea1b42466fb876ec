//! Runs one function over many things on all cores. Knows nothing about the things.

use std::thread::{self, Builder, ScopedJoinHandle};

/// Fewer things than these for each thread are not worth starting it.
const SHARE_MIN: usize = 16;

enum Share<'scope, R> {
    Begun(ScopedJoinHandle<'scope, R>),
    Done(R),
}

/// What `each` gives for every item, in the items' order. Starts no thread when there are few.
pub fn map<T: Sync, R: Send>(items: &[T], each: impl Fn(&T) -> R + Sync) -> Vec<R> {
    shares(items, |share| share.iter().map(&each).collect::<Vec<R>>()).into_iter().flatten().collect()
}

/// What `work` gives for each core's share of the items, in their order. The first share is the
/// calling thread's own.
pub fn shares<T: Sync, R: Send>(items: &[T], work: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    if items.len() <= SHARE_MIN {
        return vec![work(items)];
    }
    // Asked only now: the answer takes reading what the cgroup allows.
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = items.len().div_ceil(cores).max(SHARE_MIN);
    let (first, rest) = items.split_at(share.min(items.len()));
    thread::scope(|scope| {
        let work = &work;
        // Where the system has no more threads to give, this one does the work.
        let start = |part| match Builder::new().spawn_scoped(scope, move || work(part)) {
            Ok(thread) => Share::Begun(thread),
            Err(_) => Share::Done(work(part)),
        };
        let begun: Vec<_> = rest.chunks(share).map(start).collect();
        let join = |share| match share {
            Share::Begun(thread) => thread.join().expect("a panic ends the program"),
            Share::Done(result) => result,
        };
        let first = work(first);
        std::iter::once(first).chain(begun.into_iter().map(join)).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_items_order() {
        for count in [0, 1, 15, 16, 17, 1_000] {
            let items: Vec<usize> = (0..count).collect();
            let expect: Vec<usize> = (0..count).map(|n| n * 2).collect();
            assert_eq!(map(&items, |n| n * 2), expect, "{count}");
            assert_eq!(shares(&items, <[usize]>::to_vec).concat(), items, "{count}");
        }
    }
}
