//! Opening, flushing and merging: everything that changes the disk, beside the journal's frames.
//!
//! Locks are taken in this order: `flushing` or `merging`, then `manifest`, then `view`; the
//! journal's own are taken alone or within `flushing`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use tidings_core::in_process::rest;
use tidings_core::ports::disk::Disk;
use tidings_core::ports::store::{StoreError, StoreResult};

use super::cache::Cache;
use super::journal::{self, Journal};
use super::manifest::{self, Manifest};
use super::memtable::Memtable;
use super::segment::{self, Segment, SegmentWriter};
use super::view::View;
use super::*;

/// Waits between tries while the disk is full or failing: doubled from the first to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// A merge that finds the disk full has just taken the room that the log needs: it comes back
/// after [`RETRY_LAST`] first and ever more seldom.
const MERGE_RETRY_LAST: Duration = Duration::from_secs(600);

/// Segments below this size are one size class; each next class is four times as large.
const CLASS_BYTES: u64 = 1 << 20;

impl Inner {
    pub(super) fn open(disk: Arc<dyn Disk>, options: Options) -> StoreResult<Inner> {
        let names = disk
            .list()
            .map_err(|e| StoreError::Unavailable(format!("listing the store's folder: {e}")))?;
        let strays = names
            .iter()
            .filter(|n| n.ends_with(segment::SUFFIX) || journal::is_journal(n))
            .count();
        let manifest = if names.iter().any(|n| n == manifest::NAME) {
            Manifest::read(&*disk)?
        } else if strays > 0 {
            // The first manifest is durable before the first of them is made.
            return Err(StoreError::Corrupt(format!(
                "there are {strays} segments or journals but no manifest"
            )));
        } else {
            let fresh = Manifest {
                next_segment: 1,
                ..Manifest::default()
            };
            fresh
                .write(&*disk)
                .map_err(|trouble| fatal_if_sync(trouble, &options.on_fatal))?;
            fresh
        };
        let mut segments = Vec::new();
        for (number, len) in &manifest.segments {
            let name = segment::name(*number);
            if !names.contains(&name) {
                return Err(StoreError::Corrupt(format!(
                    "{name} is missing, the manifest names it"
                )));
            }
            segments.push(Arc::new(Segment::open(&*disk, *number, *len)?));
        }
        let live: Vec<String> = manifest
            .segments
            .keys()
            .map(|n| segment::name(*n))
            .collect();
        for name in names
            .iter()
            .filter(|n| *n == manifest::NEXT_NAME || n.ends_with(segment::SUFFIX))
        {
            if !live.contains(name) {
                remove(&*disk, name);
            }
        }
        let (journal, cursors) = Journal::open(&*disk, &names)?;
        let active = Memtable::default();
        active.put_cursors(cursors);
        let mut view = View {
            active: Arc::new(active),
            frozen: None,
            segments,
        };
        view.sort_segments();
        Ok(Inner {
            cache: Cache::new(options.cache_bytes),
            journal,
            disk,
            options,
            view: RwLock::new(Arc::new(view)),
            durable: RwLock::new(manifest.settled.clone()),
            manifest: Mutex::new(manifest),
            health: AtomicU8::new(HEALTHY),
            flushing: Mutex::new(()),
            merging: Mutex::new(()),
            bell: Bell::default(),
            counters: figures::Counters::default(),
        })
    }

    /// Flushes what was put before the call. When it fails the rows stay in memory, readable,
    /// and the next call tries again.
    pub(super) fn flush(&self) -> Result<(), Trouble> {
        let _one = lock(&self.flushing);
        self.bell.flush_asked.store(false, Ordering::Relaxed);
        // First one that failed before, then the active one.
        let done = self.flush_frozen().and_then(|()| {
            self.journal.close_file();
            self.freeze();
            self.flush_frozen()
        });
        if done.is_ok() {
            self.journal.remove_closed(&*self.disk);
        }
        let health = match &done {
            Ok(()) => HEALTHY,
            Err(Trouble::Full) => FULL,
            Err(_) => FAILING,
        };
        if self.health.load(Ordering::Relaxed) != DEAD {
            self.health.store(health, Ordering::Relaxed);
        }
        done
    }

    fn freeze(&self) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        if view.frozen.is_none() && !view.active.is_empty() {
            *view = Arc::new(View {
                active: Arc::default(),
                frozen: Some(view.active.clone()),
                segments: view.segments.clone(),
            });
        }
    }

    fn flush_frozen(&self) -> Result<(), Trouble> {
        let Some(table) = self.view().frozen.clone() else {
            return Ok(());
        };
        self.refuse_when_dead()?;
        let number = self.next_number();
        let made = if table.bytes() == 0 {
            Ok(None)
        } else {
            self.write_table(&table, number).map(Some)
        };
        let done = made.and_then(|segment| self.install(segment, &[], Some(&table)));
        self.clean_up(done, number)
    }

    fn write_table(&self, table: &Memtable, number: u64) -> Result<Arc<Segment>, Trouble> {
        let conversations = table.conversations();
        let keys = (conversations.len() + table.row_count()) as u64;
        let mut writer = SegmentWriter::create(
            &*self.disk,
            &segment::name(number),
            self.options.codec,
            keys,
        )?;
        for conversation in &conversations {
            let mut done = Ok(());
            table.events(*conversation, 0, u64::MAX, |row| {
                done = writer.event(row);
                done.is_ok()
            });
            done?;
        }
        for conversation in conversations {
            for row in table.rows(conversation) {
                writer.row(row)?;
            }
        }
        let len = writer.finish()?;
        Ok(Arc::new(
            Segment::open(&*self.disk, number, len).map_err(Trouble::Store)?,
        ))
    }

    /// Merges all segments into one.
    pub(super) fn merge_all(&self) -> Result<(), Trouble> {
        let _one = lock(&self.merging);
        let inputs = self.view().segments.clone();
        if inputs.len() > 1 {
            self.merge(inputs, &|| true)
        } else {
            Ok(())
        }
    }

    /// Merges the segments of one size class that has enough of them; whether there was one.
    pub(super) fn merge_some(&self, go_on: &dyn Fn() -> bool) -> Result<bool, Trouble> {
        let _one = lock(&self.merging);
        let mut classes: BTreeMap<u32, Vec<Arc<Segment>>> = BTreeMap::new();
        for segment in self
            .view()
            .segments
            .iter()
            .filter(|s| s.len <= self.options.merge_bytes_max)
        {
            classes
                .entry((segment.len / CLASS_BYTES).max(1).ilog(4))
                .or_default()
                .push(segment.clone());
        }
        match classes
            .into_values()
            .find(|class| class.len() >= self.options.merge_segments)
        {
            Some(inputs) => self.merge(inputs, go_on).map(|()| true),
            None => Ok(false),
        }
    }

    fn merge(&self, inputs: Vec<Arc<Segment>>, go_on: &dyn Fn() -> bool) -> Result<(), Trouble> {
        self.refuse_when_dead()?;
        let number = self.next_number();
        let done = match self.write_merged(&inputs, number, go_on) {
            Ok(Some(merged)) => self.install(Some(merged), &inputs, None),
            Ok(None) => {
                remove(&*self.disk, &segment::name(number));
                Ok(())
            }
            Err(trouble) => Err(trouble),
        };
        self.clean_up(done, number)
    }

    fn write_merged(
        &self,
        inputs: &[Arc<Segment>],
        number: u64,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Arc<Segment>>, Trouble> {
        let keys = inputs.iter().map(|s| s.summary.keys).sum();
        let mut writer = SegmentWriter::create(
            &*self.disk,
            &segment::name(number),
            self.options.codec,
            keys,
        )?;
        if !merge::merge(inputs, &mut writer, go_on)? {
            return Ok(None);
        }
        let len = writer.finish()?;
        Ok(Some(Arc::new(
            Segment::open(&*self.disk, number, len).map_err(Trouble::Store)?,
        )))
    }

    fn next_number(&self) -> u64 {
        let mut manifest = lock(&self.manifest);
        manifest.next_segment += 1;
        manifest.next_segment - 1
    }

    /// Puts a new segment in the place of old ones or of the flushed table: on the disk, then
    /// for readers; then the old files go.
    fn install(
        &self,
        new: Option<Arc<Segment>>,
        old: &[Arc<Segment>],
        flushed: Option<&Memtable>,
    ) -> Result<(), Trouble> {
        let mut manifest = lock(&self.manifest);
        let mut next = manifest.clone();
        next.segments.extend(new.iter().map(|s| (s.number, s.len)));
        next.segments
            .retain(|number, _| old.iter().all(|o| o.number != *number));
        for (partition, position) in flushed.map(Memtable::settled).unwrap_or_default() {
            let there = next.settled.entry(partition).or_default();
            *there = position.max(*there);
        }
        next.write(&*self.disk)?;
        self.change_view(|view| {
            view.segments
                .retain(|s| old.iter().all(|o| o.number != s.number));
            view.segments.extend(new);
            view.sort_segments();
            if flushed.is_some() {
                view.frozen = None;
            }
        });
        *self.durable.write().unwrap_or_else(PoisonError::into_inner) = next.settled.clone();
        *manifest = next;
        drop(manifest);
        let counter = if flushed.is_some() {
            &self.counters.flushes
        } else {
            &self.counters.merges
        };
        figures::count(counter);
        for segment in old {
            self.cache.forget(segment.number);
            remove(&*self.disk, &segment::name(segment.number));
        }
        Ok(())
    }

    fn change_view(&self, change: impl FnOnce(&mut View)) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = View::clone(&view);
        change(&mut changed);
        *view = Arc::new(changed);
    }

    fn refuse_when_dead(&self) -> Result<(), Trouble> {
        match self.health.load(Ordering::Relaxed) {
            DEAD => Err(Trouble::Sync("a sync failed before".into())),
            _ => Ok(()),
        }
    }

    /// After a failure: removes the file that was begun, or ends the process when nobody knows
    /// what the disk holds.
    fn clean_up(&self, done: Result<(), Trouble>, number: u64) -> Result<(), Trouble> {
        match &done {
            Ok(()) => {}
            Err(Trouble::Sync(why)) => self.die(why),
            Err(_) => {
                figures::count(&self.counters.failures);
                remove(&*self.disk, &segment::name(number));
            }
        }
        done
    }

    fn die(&self, why: &str) {
        if self.health.swap(DEAD, Ordering::Relaxed) != DEAD {
            (self.options.on_fatal)(why);
        }
    }

    pub(super) fn journal_is_long(&self) -> bool {
        self.journal.bytes() > self.options.cursor_journal_bytes
    }

    /// Makes cursors durable that are in the memtable.
    pub(super) fn write_cursors(&self, rows: &[CursorRow]) -> StoreResult<()> {
        self.refuse_when_dead()?;
        let done = self.journal.append(&*self.disk, rows);
        match &done {
            Ok(()) => {}
            Err(Trouble::Sync(why)) => self.die(why),
            Err(_) => figures::count(&self.counters.failures),
        }
        if self.journal_is_long() {
            self.ask_for_flush();
        }
        Ok(done?)
    }

    /// Writes what queued while the disk was busy as one: a sync is what takes the time.
    fn journal_loop(&self) {
        while let Some(calls) = self.journal.wait() {
            let rows: Vec<CursorRow> = calls.iter().flat_map(|call| &call.rows).copied().collect();
            let done = self.write_cursors(&rows);
            for call in calls {
                // Nobody waits any more: the caller's time was up.
                let _ = call.answer.send(done.clone());
            }
        }
    }

    pub(super) fn ask_for_flush(&self) {
        if !self.bell.flush_asked.swap(true, Ordering::Relaxed) {
            lock(&self.bell.state).flush = true;
            self.bell.rung.notify_all();
        }
    }

    /// What the threads do, where there are none. A failure is seen in that the position stands
    /// still, and later in that puts are refused.
    pub(super) fn flush_and_merge_here(&self) {
        let done = self.flush().and_then(|()| {
            while self.merge_some(&|| true)? {}
            Ok(())
        });
        if let Err(trouble) = done {
            tracing::warn!(?trouble, "the store's rows stay in memory");
        }
    }

    fn flush_loop(&self) {
        let mut retry = RETRY_FIRST;
        let look = QUIET.min(self.options.flush_after);
        let (mut waited, mut puts) = (Duration::ZERO, 0);
        while self.wait(look, |s| s.flush) {
            let is_asked = std::mem::take(&mut lock(&self.bell.state).flush);
            waited += look;
            if !is_asked && !self.is_quiet(&mut puts) && waited < self.options.flush_after {
                rest();
                continue;
            }
            waited = Duration::ZERO;
            match self.flush() {
                Ok(()) => {
                    retry = RETRY_FIRST;
                    lock(&self.bell.state).merge = true;
                    self.bell.rung.notify_all();
                    rest();
                }
                Err(trouble) => {
                    tracing::warn!(
                        ?trouble,
                        retry_ms = retry.as_millis() as u64,
                        "rows can't be flushed and stay in memory"
                    );
                    if !self.wait(retry, |_| false) {
                        return;
                    }
                    retry = (retry * 2).min(RETRY_LAST);
                    lock(&self.bell.state).flush = true;
                }
            }
        }
    }

    /// Forgets blocks that nobody reads any more; whether nothing was put either since the call
    /// before, which noted `puts`, and what is in memory is worth a segment.
    pub(super) fn is_quiet(&self, puts: &mut u64) -> bool {
        self.cache.age();
        let now = self.counters.puts.load(Ordering::Relaxed);
        let is_still = std::mem::replace(puts, now) == now;
        is_still && self.view().active.bytes() > self.options.quiet_flush_bytes
    }

    fn merge_loop(&self) {
        let mut retry = RETRY_LAST;
        let go_on = || !lock(&self.bell.state).stop;
        while self.wait(Duration::MAX, |s| s.merge) {
            lock(&self.bell.state).merge = false;
            loop {
                match self.merge_some(&go_on) {
                    Ok(true) if go_on() => retry = RETRY_LAST,
                    Ok(_) => {
                        rest();
                        break;
                    }
                    Err(trouble) => {
                        tracing::warn!(
                            ?trouble,
                            retry_ms = retry.as_millis() as u64,
                            "segments can't be merged and stay as they are"
                        );
                        if !self.wait(retry, |_| false) {
                            return;
                        }
                        retry = (retry * 2).min(MERGE_RETRY_LAST);
                    }
                }
            }
        }
    }

    /// Waits until `ready` or for so long; `false`: the store is closing.
    fn wait(&self, at_most: Duration, ready: impl Fn(&BellState) -> bool) -> bool {
        let state = lock(&self.bell.state);
        let waiting = |s: &mut BellState| !s.stop && !ready(s);
        let state = if at_most == Duration::MAX {
            self.bell
                .rung
                .wait_while(state, waiting)
                .unwrap_or_else(PoisonError::into_inner)
        } else {
            self.bell
                .rung
                .wait_timeout_while(state, at_most, waiting)
                .unwrap_or_else(PoisonError::into_inner)
                .0
        };
        !state.stop
    }
}

/// Starts the threads: one flushes, one merges and one writes the journal, so that a long merge
/// holds up no flush, and a flush no cursor.
pub(super) fn spawn(inner: &Arc<Inner>) -> StoreResult<Vec<JoinHandle<()>>> {
    // What an earlier run left to merge.
    lock(&inner.bell.state).merge = true;
    let start = |name: &str, run: fn(&Inner)| {
        let inner = inner.clone();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || run(&inner));
        thread.map_err(|e| StoreError::Unavailable(format!("starting the thread {name}: {e}")))
    };
    Ok(vec![
        start("store-flush", Inner::flush_loop)?,
        start("store-merge", Inner::merge_loop)?,
        start("store-cursors", Inner::journal_loop)?,
    ])
}

fn fatal_if_sync(trouble: Trouble, on_fatal: &OnFatal) -> StoreError {
    if let Trouble::Sync(why) = &trouble {
        on_fatal(why);
    }
    trouble.into()
}

/// A file that stays is rubbish and no harm: the next start removes it.
pub(super) fn remove(disk: &dyn Disk, name: &str) {
    match disk.remove(name) {
        Ok(()) => {}
        // It was never made.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(name, %error, "a file that the store doesn't need can't be removed");
        }
    }
}
