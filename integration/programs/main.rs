//! The kernel programs, frame by frame, by BPF_PROG_TEST_RUN. Needs CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN (to
//! mount a BPF file system of its own). With CI=true a machine that can't is a failure, elsewhere the cases are reported
//! as ignored.

mod adopt;
mod beat;
mod bench;
mod change;
mod classes;
mod fragments;
mod frames;
mod meaning;
mod octets;
mod reference;
mod reload;
#[path = "../worlds.rs"]
mod worlds;

use libtest_mimic::{Arguments, Failed, Trial};

macro_rules! cases {
    ($($module:ident: $($case:ident),* $(,)?);* $(;)?) => {
        vec![$($(Trial::test(concat!(stringify!($module), "::", stringify!($case)), || {
            $module::$case();
            Ok::<(), Failed>(())
        })),*),*]
    };
}

fn main() {
    // One at a time: every case reads the same interface's counters from maps of its own, but memory is shared.
    let arguments = Arguments::from_args();
    let able = std::env::var_os("CI").is_some() || is_root();
    let cases = cases! {
        classes: a_granted_connection_passes_and_the_next_packet_is_its_flow, what_is_not_granted_is_refused,
            an_expired_grant_opens_nothing_new_but_keeps_its_flow, a_flow_outlives_its_ttl_over_a_reload_but_not_its_rule,
            what_comes_back_for_a_revoked_flow_is_refused_even_where_ingress_is_open, an_inbound_flow_opens_no_outbound_one, an_outbound_flow_opens_no_inbound_one,
            a_cidr_rule_opens_no_peer_and_no_proxy_address, a_service_is_what_its_row_says, a_deny_beats_every_allow,
            options_pass_but_source_routes_do_not, extension_headers_are_walked_up_to_a_bound,
            tags_and_other_ethertypes_are_dropped, other_protocols_and_tunnels_are_dropped,
            malformed_headers_are_dropped, an_ipv4_address_in_ipv6_is_no_address, foreign_sources_are_spoofed, the_first_good_frame_teaches_the_mac,
            arp_is_policed, neighbour_discovery_is_policed, echo_follows_the_rules_and_errors_follow_flows,
            a_block_of_ports_opens_what_is_in_it_and_no_more, sctp_is_judged_by_its_ports,
            a_question_over_icmp_is_judged_by_its_own_type_and_answered_by_its_own_answer,
            a_type_of_icmp_that_asks_nothing_is_open_only_to_a_rule_that_names_it,
            a_query_is_steered_to_the_proxy_and_its_reply_back,
            dns_over_tls_is_steered_only_where_the_proxy_serves_it, a_refusal_is_answered_when_asked_to,
            without_a_policy_the_pod_does_what_it_likes_as_itself,
            an_audited_endpoint_is_told_of_and_let_through_once_a_conversation, the_end_of_an_audit_ends_what_policy_does_not_allow, a_closed_endpoint_and_an_unknown_interface_pass_nothing,
            flows_beyond_the_budget_are_refused_until_one_ends, a_dry_run_leaves_no_trace,
            the_probe_notices_an_endpoint_that_lets_everything_through, many_rows_are_written_and_read_in_batches;
        beat: a_dead_proxys_endpoint_does_not_run_into_its_budget, datagrams_of_which_not_every_fragment_came_go_too,
            nothing_is_swept_while_the_heart_beats,
            flows_of_nobody_we_know_are_left_to_the_proxy;
        fragments: later_ones_follow_a_first_that_passed, later_ones_of_a_refused_first_are_lone,
            later_ones_of_another_datagram_are_lone, a_first_without_its_whole_header_is_tiny, nothing_reaches_into_a_first,
            lengths_that_no_datagram_has_are_malformed, an_atomic_fragment_is_dropped, questions_over_icmp_may_be_long_and_errors_not,
            a_query_in_fragments_is_not_steered_and_does_not_pass_the_proxy_by,
            a_later_fragment_is_never_answered, what_comes_in_is_judged_as_any_packet,
            fragments_of_audited_packets_pass, no_more_datagrams_are_under_way_than_the_budget_has,
            a_first_is_remembered_for_30_seconds, a_reload_ends_what_is_under_way, the_sweep_removes_what_is_over,
            an_error_about_a_first_fragment_belongs_to_its_flow, a_dry_run_of_fragments_leaves_no_trace,
            options_and_extension_headers_do_not_hide_a_fragment;
        adopt: what_was_open_goes_on_until_the_window_is_over, nothing_new_begins_in_the_window,
            what_policy_allows_outlives_the_window_whoever_was_seen_first, what_a_rule_denies_is_not_adopted, who_opened_it_is_not_guessed_in_favour_of_what_is_open,
            where_ingress_is_open_a_server_that_speaks_first_brings_nothing_back, an_audited_endpoint_is_audited_as_ever;
        change: no_row_that_is_changed_in_place_opens_more_than_before_or_after;
        octets: what_is_open_in_ipv4_is_not_open_in_ipv6, a_header_behind_the_end_of_its_packet_is_malformed,
            a_query_that_can_not_be_steered_is_refused_as_it_was_sent;
        reload: no_step_of_a_reload_opens_more_than_before_or_after;
        meaning: the_programs_do_what_random_policies_say;
        reference: the_programs_agree_with_a_model_on_random_rules_and_packets;
    };
    let cases = cases.into_iter().map(|case| case.with_ignored_flag(!able)).collect();
    libtest_mimic::run(&arguments, cases).exit();
}

fn is_root() -> bool {
    // SAFETY: no arguments, no failure.
    unsafe { libc::geteuid() == 0 }
}
