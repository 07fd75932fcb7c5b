//! The real binary, from outside: it is started on a folder of its own and spoken to over sockets,
//! by hand as docs/protocol.md and docs/http.md say, and by the client library.
//!
//! # The security checklist
//!
//! Every row of the checklist ("bad input → exact behaviour") that concerns what exists, and the
//! tests that hold it. Names without a crate are here; where a row needs what can't be made from
//! outside (a slow clock, a panic, a full table), the test is beside the code.
//!
//! | row | bad input | test |
//! |---|---|---|
//! | 1, 2 | other origins, cookies | `bad_input::pages_of_other_origins_get_no_session_whatever_cookies_they_bring`, gateway `ws::handshake::browsers_come_from_listed_origins_only` |
//! | 3 | tokens in the URL | `accounts::a_ticket_opens_one_session_and_nothing_else_may_stand_in_the_url`, `auth::tests::a_ticket_is_good_once_and_for_half_a_minute` |
//! | 4 | no `auth` | `bad_input::whoever_says_nothing_is_sent_away_after_five_seconds`, gateway `worker::pool::each_limit_refuses_with_its_status_and_gives_back_what_it_counted` |
//! | 5 | anything before `auth` | `bad_input::nothing_is_done_for_whoever_has_not_signed_in` |
//! | 6, 7 | upgrades and heads that break a rule | `bad_input::requests_that_break_a_rule_get_the_status_that_says_which`, gateway `http_head::heads_that_two_readers_could_read_differently_are_refused` |
//! | 8 | slow heads, hellos and frames | gateway `limits::a_head_that_does_not_come_is_cut`, `limits::a_frame_without_progress_ends_the_session` |
//! | 9, 10, 12, 13 | broken frames | `bad_input::broken_frames_end_the_session_with_the_code_that_says_why`, gateway `ws::decoder::tests` |
//! | 11 | compressed bombs | protocol `malformed::a_zstd_bomb_is_refused_from_its_header`, `malformed::a_body_above_the_limit_is_too_long_plain_or_compressed`; deflate isn't offered (row 9) |
//! | 14 | floods | `limits::a_flood_of_frames_ends_the_session` |
//! | 15, 16 | confusing tokens | `servers::tokens_that_confuse_others_are_refused_in_the_same_words`, `auth::tests::external` |
//! | 17 | a token ends | `servers::a_session_ends_with_its_token_unless_the_same_user_brings_a_fresh_one` |
//! | 18 | revoked, password changed, device removed, disabled | `accounts::logging_out_closes_the_live_session_of_this_sign_in_only` and the three behind it |
//! | 19 | a refresh token twice | `accounts::a_refresh_token_rotates_and_its_second_use_ends_the_whole_sign_in` |
//! | 20 | passwords | `accounts::what_can_be_no_account_is_refused_with_the_reason`, `auth::password` |
//! | 21 | guessing | `accounts::strangers_learn_nothing_from_a_refused_login_and_are_slowed_down`, `auth::throttle` |
//! | 22 | a conversation of others | `bad_input::a_conversation_of_others_looks_like_one_that_does_not_exist`, `conversations::a_group_is_joined_by_invitation_and_left` |
//! | 23, 25, 27 | forged, malformed, unknown | `bad_input::malformed_commands_are_refused_and_the_connection_stays`, protocol `malformed` |
//! | 24 | the same number, another message | `messages::a_resend_under_another_id_changes_nothing_and_is_told_the_first` |
//! | 26 | rates | `limits::too_many_sends_are_put_off_and_three_times_too_many_close_the_session`, `limits::bytes_are_counted_by_the_minute`, `limits::joins_are_counted_by_the_hour` |
//! | 28 | long texts, odd names | `limits::bodies_of_requests_are_bounded`, `accounts::what_can_be_no_account_is_refused_with_the_reason`, `auth::names` |
//! | 29 | markup | `bad_input::the_page_takes_no_script_but_its_own_and_bodies_stay_what_they_are` |
//! | 36 | injection | `bad_input::names_and_titles_are_values_and_nothing_else` |
//! | 38 | enumeration | `accounts::strangers_learn_nothing_from_a_refused_login_and_are_slowed_down`, `accounts::users_are_found_by_their_exact_name_and_a_hundred_times_an_hour` |
//! | 39 | operators' pages from outside | `operations::health_and_metrics_are_on_the_admin_port_only` |
//! | 40 | TLS | `tls`, gateway `tls`, gateway `worker::config::unencrypted_connections_come_from_this_machine_only` |
//! | 41 | secrets | `secrets`, `tls::a_key_that_others_may_read_is_refused_at_the_start` |
//! | 44 | large maps of a client's making | `bad_input::malformed_commands_are_refused_and_the_connection_stays` (fields, lists), `auth::bounded::what_is_touched_stays_and_the_bound_holds`, gateway `host::users::it_stays_within_its_bound` |
//! | 45 | a panic | gateway `sessions::a_panic_ends_its_session_and_no_other` |

mod accounts;
mod bad_input;
mod clients;
mod conversations;
mod dead_letters;
mod life;
mod limits;
mod messages;
mod operations;
mod secrets;
mod servers;
mod settings;
mod support;
mod tls;
