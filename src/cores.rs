//! Runs one function over many things on all cores. Knows nothing about the things.

use std::thread::{self, Builder, ScopedJoinHandle};

/// Fewer things than these for each thread are not worth starting it.
const SHARE_MIN: usize = 16;

enum Share<'scope, R> {
    Begun(ScopedJoinHandle<'scope, Vec<R>>),
    Done(Vec<R>),
}

/// What `each` gives for every item, in the items' order. Starts no thread when there are few.
pub fn map<T: Sync, R: Send>(items: &[T], each: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = items.len().div_ceil(cores).max(SHARE_MIN);
    if items.len() <= share {
        return items.iter().map(each).collect();
    }
    let work = |share: &[T]| share.iter().map(&each).collect::<Vec<R>>();
    thread::scope(|scope| {
        let work = &work;
        // Where the system has no more threads to give, this one does the work.
        let start = |part| match Builder::new().spawn_scoped(scope, move || work(part)) {
            Ok(thread) => Share::Begun(thread),
            Err(_) => Share::Done(work(part)),
        };
        let shares: Vec<_> = items.chunks(share).map(start).collect();
        let join = |share| match share {
            Share::Begun(thread) => thread.join().expect("a panic ends the program"),
            Share::Done(results) => results,
        };
        shares.into_iter().flat_map(join).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::map;

    #[test]
    fn results_are_in_the_items_order() {
        for count in [0, 1, 15, 16, 17, 1_000] {
            let items: Vec<usize> = (0..count).collect();
            let expect: Vec<usize> = (0..count).map(|n| n * 2).collect();
            assert_eq!(map(&items, |n| n * 2), expect, "{count}");
        }
    }
}
