//! Runs that once went wrong.

use sim::run::play;
use sim::scenario::Scenario;

fn holds(text: &str) {
    let scenario: Scenario = text.parse().expect("it was written by the simulation");
    let report = play(&scenario, None, true);
    assert_eq!(report.violation, None, "{}", report.story.join("\n"));
}

/// Images left out what had an empty value, and a rewriting took absence for nothing new: line 0 had relations that had been dropped.
#[test]
fn a_dropped_relation_stays_dropped_however_often_its_layers_are_rewritten() {
    holds(
        "
         seed 363
         +30 lease 0 210 16
         +545 lease 6 325 2
         +0 write 7 6 1075993674
         +5 write 3 31 3479649896
         +44 seal 1
         +3649 crash 3 59
         +171380 write 4 2 643626733
         +11 write 2 2 3354162942
         +371 write 1 51 1756476495
         +60066 lease 3 626 4023
         +0 crash 3 1466
         +0 write 3 38 3149033025
         +21975 restart
         +5897 write 6 47 3296538696
         +0 take-over
        ",
    );
}

/// A layer that the full disk did not take was the end of its timeline, until the process ended.
#[test]
fn a_tail_waits_while_the_local_disk_is_full() {
    holds(
        "
         seed 0
         +6 disk full 6106
         +1 write 0 26 2141928539
         +14848770 checkpoint 6
        ",
    );
}

/// What the disk did not give back was an error of the read, and the end of ingest when that was who read; the bucket has it all.
#[test]
fn a_local_disk_that_fails_only_makes_the_cache_smaller() {
    holds(
        "
         seed 3
         +10 write 0 60 11
         +5000 checkpoint 0
         +20000 restart
         +20000 read 0 20 5
         +1000 disk failing 60000
         +100 write 0 60 12
         +100 read 0 20 5
         +5000 read 0 20 9
        ",
    );
}

/// A local copy that was not what had been written was believed to be all that there is, and its layer damaged for good.
#[test]
fn a_damaged_local_copy_is_fetched_again() {
    holds(
        "
         seed 78
         +152521 disk full 690320
         +3460 write 0 24 2735158983
         +147949 disk rotting 11037
         +28089 write 5 6 4035776858
        ",
    );
}

/// Reads of parts give up after ten minutes, since somebody may wait for a page; ingest did with them, for good.
#[test]
fn ingest_waits_for_a_bucket_that_is_away_for_long() {
    holds(
        "
         seed 12
         +10 write 0 60 11
         +5000 checkpoint 0
         +20000 restart
         +3000 outage 2400000 refusing
         +100 write 0 60 12
         +100 write 0 60 13
         +10 write 0 60 14
         +2300000 write 0 60 15
         +2300000 write 0 60 15
        ",
    );
}

/// An owner that opened the timeline went by what was asked for then, and gave up a branch point without saying so in the index. It was asked for again, by the
/// index of a branch that an older owner put too late; the index said that it was kept, and what it had been was read wrongly.
#[test]
fn what_the_index_says_is_kept_is_kept_until_it_says_otherwise() {
    holds(
        "
         seed 520
         +472 write 0 6 3891400022
         +3 write 4 1 1192988162
         +4451 branch 7 lsn 167
         +0 detach 5
         +11044 branch 6 lsn 791
         +556704 write 0 7 2035627606
         +5000 checkpoint 6
         +3 branch 3 lsn 574
         +229771 detach 3
         +2268 cut-off 164837
         +28 branch 0 lsn 499
         +484 take-over
         +187783 read 0 20 1596459015
        ",
    );
}

/// A layer that was copied through the process lost what its get had lost.
#[test]
fn a_layer_whose_copy_broke_off_is_copied_again() {
    holds(
        "
         seed 622
         +215 write 7 3 1647689638
         +339425 branch 2 lsn 10
         +35705 fault get cut-short 0
         +0 detach 1
         +31718 checkpoint 3
        ",
    );
}

/// A tail that was frozen at a switch of segments covered objects that replay had not come by; they were deleted, and missed.
#[test]
fn replay_finds_the_rest_of_a_segment_that_was_switched_away() {
    holds(
        "
         seed 1017
         +0 crash 7 11
         +170 write 2 4 2118816345
         +4 fault put-index fail 0
         +1 write 7 2 2240482364
         +607 take-over
         +2723 read 7 18 228932894
         +1491945 fault list lose-answer 0
         +8736100 write 1 2 198892446
        ",
    );
}

/// Below the cutoff only what was leased or named could be leased, and not where a branch begins.
#[test]
fn an_lsn_that_a_branch_keeps_can_be_leased() {
    holds(
        "
         seed 685
         +15602 write 5 3 3455861561
         +3 branch 5 tip 0
         +34 write 2 14 2251909804
         +4257 write 0 37 3384117295
         +58 write 6 14 3392849359
         +81550 write 5 6 173080838
         +3 lease 0 49 4086
        ",
    );
}

/// A put whose answer was lost is compared with what is there; what broke off on the way back was taken for somebody else's.
#[test]
fn an_answer_that_broke_off_is_not_another_object() {
    holds(
        "
         seed 1709
         +14 fault put late 46
         +6 fault get cut-short 0
         +1 fault get cut-short 0
         +622 write 6 8 425298884
         +22392267 write 6 58 4147361235
        ",
    );
}

/// A timeline that was shutting down said that all was in layers, and did not have the last one among those that a branch copied that left it.
#[test]
fn a_branch_that_leaves_while_the_process_ends_takes_all_layers() {
    holds(
        "
         seed 2052
         +11567 write 4 6 3080238206
         +4612 branch 1 lsn 151
         +22 restart
         +12697 detach 7
        ",
    );
}

/// A delta that reached over the cutoff was cut there, and the stack was too high for it: both halves were merged again, until no name was left.
#[test]
fn what_was_cut_at_the_cutoff_is_merged_with_what_is_above_it() {
    holds(
        "
         seed 3636
         +12 write 5 31 3117772096
         +0 write 7 1 3490098043
         +0 branch 7 lsn 193
        ",
    );
}

/// A page of WAL that does not begin a file of it has a short header: a record may end behind that, and what is asked for before its end is not the same place.
#[test]
fn what_lies_before_the_end_of_a_record_is_not_read_as_of_it() {
    holds(
        "
         seed 3943
         +13 write 3 2 1392624911
         +3 branch 1 time 668
         +13558 write 0 4 366113153
         +20 branch 4 tip 0
         +156072 write 3 19 2109434713
        ",
    );
}

/// Small neighbours had come to stand on one shelf. One reached over the cutoff; when it was cut there, what lay beside it got its LSNs, and so seemed
/// newer than what was above.
#[test]
fn what_lies_beside_a_delta_that_is_cut_in_two_stays_older_than_what_is_above() {
    holds(
        "
         seed 5655
         +19767 branch 3 tip 0
         +9509 branch 2 tip 0
         +0 write 4 3 3682857079
         +0 write 7 55 1353852137
         +3 write 1 26 2285952128
        ",
    );
}

/// A branch that stands alone had got a delta of its ancestor's that came straight from a tail, below what it had merged itself; images were made without it.
#[test]
fn what_an_ancestor_had_not_merged_is_in_the_images_of_a_branch_that_left_it() {
    holds(
        "
         seed 7770
         +7212 write 2 6 816889883
         +4137 branch 6 time 140
         +7462 branch 5 lsn 553
         +1571 branch 4 tip 0
         +519504 write 3 27 1537322988
         +365493 detach 3
        ",
    );
}

/// An owner that had not heard of its successor connected once more, and wanted WAL that the source had let go by then: it is refused, as by any source.
#[test]
fn a_source_refuses_what_a_newer_owner_said_is_safe() {
    holds(
        "
         seed 12148
         +18 write 0 1 3995896474
         +15 take-over
         +437 seal 5
         +230 read 2 1 4279628211
        ",
    );
}

/// A branch was to stand alone before anybody was told where it begins, and its sibling was moved when the process ended.
#[test]
fn siblings_of_a_branch_of_unknown_place_may_be_moved_by_its_detachment() {
    holds(
        "
         seed 17092
         +28 write 4 25 991238661
         +0 branch 7 tip 0
         +36 write 6 6 27578480
         +1 write 0 7 2593974111
         +0 branch 0 tip 0
         +29 write 3 1 1601457182
         +1252 branch 6 tip 0
         +27 detach 3
         +28 restart
        ",
    );
}

/// An owner that had put nothing said again that line 0 is archived, and then the put of the owner before it came, by which it was open.
#[test]
fn an_archiving_that_a_later_owner_promises_again_stands() {
    holds(
        "
         seed 19166
         +7 write 0 8 3060783913
         +0 detach 5
         +1968 archive 0
         +1812 unarchive 2
         +0 take-over
         +300 archive 0
         +4000 restart
        ",
    );
}

/// The model took the word of an owner that went by the index of the owner before it, whose last put was still on its way.
#[test]
fn what_an_owner_has_not_put_itself_may_still_change() {
    holds(
        "
         seed 19166
         +7 write 0 8 3060783913
         +0 detach 5
         +1968 archive 0
         +1812 unarchive 2
         +0 take-over
        ",
    );
}

/// An owner that was held up put the tombstone of line 2 between the list of tombstones and the look at the index by the next one, where it was broken then.
#[test]
fn what_is_deleted_while_a_tenant_is_opened_is_not_there() {
    holds(
        "
         seed 32241
         +47 fault any lose-answer 0
         +7 branch 1 tip 0
         +23 branch 4 time 186
         +391 seal 1
         +3 delete 5
         +5 branch 0 tip 0
         +68 outage 25 refusing
         +103 write 5 2 1567476120
         +9 pause 4026
         +1743 take-over
        ",
    );
}

/// In the model a source that was not followed yet, and did not even exist, asked what of its WAL is safe.
#[test]
fn only_who_is_followed_asks_what_is_safe() {
    holds(
        "
         seed 48593
         +3001 crash 4 71
         +1 branch 2 lsn 648
         +1080 seal 1
        ",
    );
}

/// In the model a process that was told to end at that very moment was looked at, and what it was asked then had no answer for ever.
#[test]
fn who_ends_is_not_asked_further() {
    holds(
        "
         seed 60984
         +54 branch 4 time 450
         +438 write 6 1 3341687766
         +1766959 write 1 61 2292642718
         +11214 cut-off 2163
         +441 branch 2 time 842
         +671 fault put-index fail 0
         +13709 seal 4
         +21731 checkpoint 4
         +48 restart
         +4963 read 7 11 3288053542
         +3734 write 6 1 786533445
         +863 write 5 15 1655899644
         +2450 write 1 1 3559613972
         +13 write 7 11 2946561768
         +0 quiet
         +7492 delete 4
         +7 cut-off 9238
         +16 read 7 1 3304782993
         +95 restart
        ",
    );
}

/// The clock made history old just when the model looked for what nothing names: a job had put its layers, and its index not yet.
#[test]
fn what_a_job_has_just_put_is_no_orphan() {
    holds(
        "
         seed 72682
         +0 crash 27 0
         +242 clock -86400
         +12 crash 0 218
         +845 crash 11 332
         +8 clock 3600
         +13335243 write 6 5 917011213
         +219 lease 6 204 0
         +49784994 crash 8 5358
         +28109097 checkpoint 6
         +7 write 0 42 51965060
        ",
    );
}

/// An archived timeline was opened again by the same owner, who knew nothing any more of the names that it had given. It wrote a layer again under its own name, and
/// then deleted what it had replaced.
#[test]
fn an_owner_that_opens_a_timeline_again_gives_no_name_twice() {
    holds(
        "
         seed 30188
         +1311 lease 7 165 200
         +2 write 2 4 1959887568
         +2571 write 1 1 830478745
         +39411 write 7 53 1228230572
         +29 name 2 7 7
         +76016 write 1 2 3977197698
         +487867 archive 0
         +11684 unarchive 2
        ",
    );
}

/// A new image had the name of one that the owner before had made of the same keys as of the same LSN: in the index it took its place, and nobody deleted the
/// other.
#[test]
fn a_layer_has_no_name_that_the_index_has_for_another() {
    holds(
        "
         seed 29784
         +748 write 6 2 559018281
         +76 checkpoint 7
         +32 write 4 8 3817090214
         +1463432 write 7 1 1817420072
         +445 seal 6
         +5697 write 0 15 2717030922
         +65 write 5 2 2698488174
         +16744 write 5 6 4166585702
         +11158 write 4 2 1536004342
         +5020 archive 2
         +31 write 2 29 103971086
        ",
    );
}
