"""The channel contract's checklist (its section 9), and upstream's faults (its section 8), with what shows each row."""

import re
from pathlib import Path

import pytest

from tests.proofs import Row, check

STOCK_EDGE = "compat/test_compat_stock_edge.py::"
STOCK_CLOUD = "compat/test_compat_stock_cloud.py::"
RECORDING = STOCK_EDGE + "test_the_recording_is_answered_as_it_was"
NODE_JOINS = STOCK_CLOUD + "test_a_node_joins_takes_its_devices_and_reports"
C, E = "cloudcore/", "edgecore/"

NO_META_SERVER = "there is no MetaServer and no DynamicController"
NO_ROUTER = "there is no Router and no ServiceBus"

CLOUD_CORE: dict[str, Row] = {
    "C1": Row(
        "`/ca.crt` and `/edge.crt`, the token, and a server certificate with the names that are dialled",
        (
            RECORDING,
            C + "test_join_service.py::test_a_node_joins_as_upstreams_does_and_renews",
            "cloudedge/test_token.py::test_the_contracts_example",
            C + "test_join_credentials.py::test_a_server_certificate_that_does_not_do_is_replaced",
        ),
    ),
    "C2": Row(
        "mutual TLS, the node's name from the upgrade, silence at connect, messages in many frames",
        (
            STOCK_EDGE + "test_names_in_other_letters_and_messages_in_many_frames",
            C + "test_cloudhub.py::test_certificate_of_another_authority_is_refused",
            C + "test_cloudhub_bad_input.py::test_a_message_over_the_cap_ends_the_connection_with_a_reason",
            "cloudedge/test_connection.py::test_fragments_and_an_empty_last_one_are_put_together",
        ),
    ),
    "C3": Row(
        "a node without keepalives is closed, whatever else it sends",
        (C + "test_cloudhub.py::test_silent_node_is_closed_though_it_sends_other_things",),
    ),
    "C4": Row(
        "requests are answered with ObjectResp, their id as parent",
        (
            RECORDING,
            C + "test_edgecontroller_requests.py::test_a_stock_edge_core_registers_and_lives",
            C + "test_edgecontroller_requests.py::test_pods_and_what_they_refer_to",
            C + "test_edgecontroller_requests.py::test_volumes_tokens_certificates_and_events",
        ),
    ),
    "C5": Row(
        "`node/<id>/` is off on the way down, and nobody gets out of it on the way in",
        (RECORDING, C + "test_cloudhub_classes.py::test_resources_that_leave_their_node"),
    ),
    "C6": Row(
        "one message of an object at a time, again every 5 s under its id, late and second ACKs are taken",
        (
            STOCK_EDGE + "test_what_is_not_confirmed_comes_again_under_its_id",
            C + "test_cloudhub.py::test_unacknowledged_object_is_sent_again_under_its_id",
            C + "test_outbox.py::test_same_id_until_something_newer",
            C + "test_outbox.py::test_an_object_in_flight_is_not_overtaken_by_an_older_version",
        ),
    ),
    "C7": Row(
        "ObjectSync records that an upstream replica can go on from",
        (
            C + "test_sync_records.py::test_a_record_follows_what_the_node_acknowledges",
            C + "test_sync_records.py::test_an_object_of_the_cluster_is_recorded_before_it_is_sent",
        ),
    ),
    "C8": Row(
        "objects are whole, secrets come as updates, edge nodes are known by their label",
        (
            RECORDING,
            C + "test_edgecontroller_downstream.py::test_a_node_gets_what_is_its_own",
            C + "test_edgecontroller_downstream.py::test_a_node_is_an_edge_by_its_label",
        ),
    ),
    "C9": Row(
        "the Secrets are upstream's, in DER",
        (
            C + "test_join_credentials.py::test_an_empty_cluster_gets_all_three_in_upstreams_formats",
            C + "test_join_credentials.py::test_secrets_of_an_upstream_installation_are_taken",
        ),
    ),
}

EDGE_CORE: dict[str, Row] = {
    "E1": Row(
        "bootstrap by token, the name in the certificate, rotation",
        (
            E + "test_join_running.py::test_a_process_joins_by_its_file_and_is_renewed_without_loss",
            E + "test_join_child.py::test_a_token_becomes_a_certificate_and_is_gone",
            E + "test_join_child.py::test_the_certificate_itself_gets_the_next_one",
        ),
    ),
    "E2": Row("the headers of the upgrade, and no Origin", (NODE_JOINS,)),
    "E3": Row(
        "keepalives at connect and then every heartbeat",
        (NODE_JOINS, E + "test_edgecore_hub.py::test_keepalives_come_at_once_and_then_every_heartbeat"),
    ),
    "E4": Row(
        "everything unasked for is confirmed once it is stored, answers by their own id, failures never",
        (
            NODE_JOINS,
            STOCK_CLOUD + "test_an_acknowledgement_that_was_lost_is_given_again",
            E + "test_edgecore_messages.py::test_acknowledgements_are_upstreams",
            E + "test_edgecore_hub_answers.py::test_an_answer_is_told_and_acknowledged_also_when_it_is_late",
            E
            + "test_edgecore_hub_answers.py::test_an_answer_that_failed_here_is_not_acknowledged_and_disturbs_nothing",
        ),
    ),
    "E5": Row(
        "the sources and groups that upstream's cloud tells its modules by",
        (NODE_JOINS, E + "test_edgecore_messages.py::test_what_upstream_says_is_said_the_same_way"),
    ),
    "E6": Row(
        "paths of three elements",
        (
            NODE_JOINS,
            "cloudedge/test_message.py::test_object_paths",
            "cloudedge/test_message.py::test_what_is_no_path_is_refused",
        ),
    ),
    "E7": Row(
        "the node with its labels, its status as a patch, its Lease",
        (
            NODE_JOINS,
            E + "test_edged_running.py::test_the_node_and_its_lease_are_there",
            E + "test_edged_node.py::test_the_node_is_shaped_as_upstream_sends_it",
            E + "test_edged_node.py::test_the_lease_is_shaped_as_upstream_sends_it",
        ),
    ),
    "E8": Row(
        "`ErrStatus` is a failure, `OK` and ObjectResp are what they are",
        (
            STOCK_CLOUD + "test_a_failure_is_not_taken_for_a_node",
            E + "test_edged_node.py::test_recorded_answers_carry_the_node",
            "cloudedge/test_replies.py::test_what_was_refused",
            "cloudedge/test_replies.py::test_what_was_done",
        ),
    ),
    "E9": Row(
        "what comes twice is taken once, and in any order",
        (
            STOCK_CLOUD + "test_a_socket_that_is_closed_without_a_word_is_dialled_again",
            E + "test_edgecore_recovery.py::test_an_unchanged_device_is_not_handed_over_again",
            E + "test_edgecore_path.py::test_a_deleted_device_is_removed_once",
            "faults/test_faults_messages.py::test_a_tenth_of_all_messages_lost_and_others_doubled_and_swapped",
        ),
    ),
}

FAULTS: dict[str, Row] = {
    "8.1 #1": Row(
        "the edge drops the oldest of a hundred received messages",
        ("cloudedge/test_connection.py::test_a_full_inbox_stops_reading_and_loses_nothing",),
    ),
    "8.1 #2": Row(
        "what waited for a node is thrown away when it connects",
        (
            C + "test_cloudhub_sessions.py::test_what_an_app_is_to_have_waits_for_the_next_connection",
            C + "test_device_downstream.py::test_device_changed_while_its_node_was_away",
        ),
    ),
    "8.1 #3": Row(
        "a record with an empty status hides its object for ever",
        (C + "test_sync_records.py::test_an_upstream_record_without_a_status_is_taken_up",),
    ),
    "8.1 #4": Row(
        "an object called `membership` is not delivered reliably", (C + "test_cloudhub_classes.py::test_delivery",)
    ),
    "8.1 #5": Row(
        "a late answer is sent again for ever",
        (
            C + "test_outbox.py::test_an_answer_that_nobody_waits_for_is_given_up",
            E + "test_edgecore_hub_answers.py::test_an_answer_is_told_and_acknowledged_also_when_it_is_late",
        ),
    ),
    "8.1 #6": Row(
        "one object that is not acknowledged holds up all others of its node",
        (C + "test_cloudhub.py::test_node_that_does_not_acknowledge_holds_up_only_itself",),
    ),
    "8.1 #7": Row(
        "deletes of pods that are no more share one key",
        (C + "test_edgecontroller_requests.py::test_pods_and_what_they_refer_to",),
    ),
    "8.1 #8": Row(
        "recovered device changes come from the wrong source and never reach the mapper",
        (NODE_JOINS, C + "test_sync_inventory.py::test_what_differs_is_sent_and_what_is_too_much_deleted"),
    ),
    "8.1 #9": Row(
        "the message in hand is lost with the link",
        (
            E + "test_edgecore_hub_kept.py::test_a_cut_in_the_middle_of_a_frame_loses_nothing",
            E + "test_edgecore_recovery.py::test_what_was_not_confirmed_is_said_again_and_states_too",
        ),
    ),
    "8.1 #10": Row(
        "an answer is dropped when nobody waits at that very moment",
        (E + "test_edgecore_hub_answers.py::test_an_answer_is_told_and_acknowledged_also_when_it_is_late",),
    ),
    "8.1 #11": Row("objects that change between list and watch are missed", not_applicable=NO_META_SERVER),
    "8.1 #12": Row("the service bus' errors go astray", not_applicable=NO_ROUTER),
    "8.1 #13": Row(
        "the edge's question for its devices is never answered",
        (C + "test_device_downstream.py::test_membership_detail_is_confirmed_then_listed_then_sent_in_full",),
    ),
    "8.1 #14": Row(
        "a failure is stored as the object that was asked for",
        (
            STOCK_CLOUD + "test_a_failure_is_not_taken_for_a_node",
            STOCK_EDGE + "test_names_in_other_letters_and_messages_in_many_frames",
            "cloudedge/test_replies.py::test_operation_error_is_a_failure_with_its_text",
        ),
    ),
    "8.1 #15": Row("watches are not registered again after a reconnect", not_applicable=NO_META_SERVER),
    "8.1 #16": Row("listeners of URLs are never removed", not_applicable=NO_ROUTER),
    "8.1 #17": Row("bodies of the service bus arrive encoded", not_applicable=NO_ROUTER),
    "8.1 #18": Row(
        "deletes do not say of which kind the object was",
        (
            C + "test_sync_inventory.py::test_what_a_stock_edge_missed_is_deleted_after_a_restart_too",
            E + "test_edgecore_messages.py::test_a_delete_may_come_without_an_object",
        ),
    ),
    "8.1 #19": Row(
        "a volume attachment is recorded in a namespace, and deleted at the edge every few seconds",
        (C + "test_sync_records.py::test_a_cluster_object_with_a_namespace_in_its_path_is_the_clusters",),
    ),
    "8.2 #1": Row(
        "the error of a replaced connection ends the new one",
        (
            C + "test_cloudhub.py::test_takeover_by_a_second_connection",
            "faults/test_faults_cuts.py::test_a_connection_overtaken_by_its_successor",
        ),
    ),
    "8.2 #2": Row(
        "a new session's queue is replaced by an empty one nobody reads",
        (
            C + "test_cloudhub.py::test_takeover_by_a_second_connection",
            C + "test_cloudhub_sessions.py::test_what_an_app_is_to_have_waits_for_the_next_connection",
        ),
    ),
    "8.2 #3": Row(
        "more nodes than the limit get in at once",
        (
            C + "test_cloudhub.py::test_node_limit",
            C + "test_cloudhub_sessions.py::test_nodes_that_wait_count_and_the_newest_connection_of_each_stays",
        ),
    ),
    "8.2 #4": Row(
        "a message that comes while the connection closes ends the edge's process",
        ("cloudedge/test_connection.py::test_what_arrived_is_not_handed_out_after_hanging_up",),
    ),
    "8.2 #5": Row("the map of listeners is read while it changes", not_applicable=NO_META_SERVER),
    "8.2 #6": Row(
        "two replicas on an empty cluster have a CA each",
        (C + "test_join_credentials.py::test_two_replicas_on_an_empty_cluster_end_with_one_ca",),
    ),
    "8.2 #7": Row(
        "of two replicas the one that has the node drops the message",
        (
            C + "test_replicas_devices.py::test_a_node_that_moves_is_served_by_one_replica_at_a_time",
            C + "test_sync_records.py::test_what_is_acknowledged_while_the_api_is_away_is_written_when_it_is_back",
        ),
    ),
    "8.2 #8": Row(
        "messages of one sender overtake each other",
        (
            E + "test_edgecore_hub_kept.py::test_what_waits_goes_in_order_and_what_comes_follows",
            C + "test_outbox.py::test_an_object_in_flight_is_not_overtaken_by_an_older_version",
        ),
    ),
    "8.3 #1": Row(
        "one slow call to the API holds up all nodes",
        (
            C + "test_edgecontroller_limits.py::test_a_slow_call_delays_nobody_else",
            C + "test_sync_records.py::test_records_stand_back_while_values_wait_to_be_written",
        ),
    ),
    "8.3 #2": Row(
        "queues of absent nodes grow without end",
        (C + "test_cloudhub_sessions.py::test_leftovers_are_bounded_and_grow_old",),
    ),
    "8.3 #3": Row(
        "the last message of every object is kept for ever",
        (C + "test_outbox.py::test_more_than_a_node_may_have_waiting",),
    ),
    "8.3 #4": Row(
        "each break leaves a sender running",
        (
            E + "test_edgecore_hub.py::test_a_cut_is_noticed_at_once_and_repaired_within_seconds",
            "faults/test_faults_cuts.py::test_1000_cuts_while_values_change",
        ),
    ),
    "8.3 #5": Row(
        "a broken link is noticed at the next write only",
        (
            E + "test_edgecore_hub.py::test_a_cut_is_noticed_at_once_and_repaired_within_seconds",
            STOCK_CLOUD + "test_a_socket_that_is_closed_without_a_word_is_dialled_again",
        ),
    ),
    "8.3 #6": Row(
        "a path without a name ends a worker for good",
        (C + "test_authorization.py::test_paths_and_contents_that_cannot_be_read",),
    ),
    "8.3 #7": Row(
        "one full queue stalls all types of all nodes",
        (C + "test_edgecontroller_limits.py::test_lanes_are_bounded_and_fair",),
    ),
    "8.3 #8": Row(
        "a version that is no number ends the process",
        (C + "test_sync_records.py::test_a_version_that_is_no_number_is_older_than_all",),
    ),
    "8.3 #9": Row(
        "after one failed refresh the join token is never refreshed again",
        (C + "test_join_credentials.py::test_a_failed_refresh_is_tried_again",),
    ),
    "8.3 #10": Row(
        "a crash between certificate and key leaves a pair that does not match",
        (
            E + "test_join_child.py::test_killed_anywhere_the_files_are_the_old_set_or_the_new_one",
            "faults/test_faults_joining.py::test_kill_9_during_the_join",
        ),
    ),
    "8.3 #11": Row(
        "a deleted node's records are removed inside the watch",
        (C + "test_sync_records.py::test_records_of_a_node_that_is_no_more_are_dropped",),
    ),
    "8.3 #12": Row("what a node reports of itself is sent back to it", (RECORDING,)),
    "8.5 #1": Row(
        "refused connections stay open and are heard",
        (
            C + "test_cloudhub.py::test_certificate_of_another_node_is_closed_and_named_on_the_change",
            C + "test_cloudhub.py::test_node_limit",
        ),
    ),
    "8.5 #2": Row(
        "any subject and any usage is signed",
        (
            "cloudedge/test_certificates.py::test_what_is_not_signed",
            "cloudedge/test_certificates.py::test_a_node_gets_client_authentication_alone",
            C + "test_join_service.py::test_certificates_of_others",
        ),
    ),
    "8.5 #3": Row(
        "the task endpoints ask nobody who he is",
        (C + "test_join_service.py::test_health_and_what_is_not_served",),
    ),
    "8.5 #4": Row("profiling is served on the nodes' port", not_applicable="nothing here serves profiles, on any port"),
    "8.5 #5": Row(
        "events are refused where rights are checked",
        (C + "test_edgecontroller_requests.py::test_volumes_tokens_certificates_and_events",),
    ),
    "8.5 #6": Row(
        "deadlines of the file have no effect",
        (
            C + "test_cloudhub.py::test_node_that_does_not_read_is_closed_and_holds_up_only_itself",
            E + "test_edgecore_hub_faults.py::test_a_cloud_that_takes_nothing_is_given_up_at_the_write_deadline",
            E + "test_edgecore_hub_faults.py::test_a_path_that_falls_silent_is_noticed_by_a_ping",
        ),
    ),
    "8.5 #7": Row(
        "CSI answers are of the wrong type", not_applicable="there is no CSI driver, and edge core runs no pods"
    ),
}

COUNTS = {"8.1": 19, "8.2": 8, "8.3": 12, "8.5": 7}
"""Rows of the contract's tables. 8.4 is QUIC, which is not spoken; 8.6 is about documents."""
ALL = {**CLOUD_CORE, **EDGE_CORE, **FAULTS}


def test_every_row_of_the_contract_is_here() -> None:
    assert list(CLOUD_CORE) == [f"C{number}" for number in range(1, 10)]
    assert list(EDGE_CORE) == [f"E{number}" for number in range(1, 10)]
    assert list(FAULTS) == [f"{part} #{number}" for part, count in COUNTS.items() for number in range(1, count + 1)]
    assert not [name for name in (*CLOUD_CORE, *EDGE_CORE) if ALL[name].not_applicable]


@pytest.mark.parametrize("name", ALL)
def test_it_is_shown(name: str) -> None:
    check(name, ALL[name])


def test_the_page_has_the_same_rows_and_names_tests_that_are_there() -> None:
    tests = Path(__file__).parent
    page = (tests.parent / "docs" / "compatibility.md").read_text()
    assert set(re.findall(r"\| ([CE]\d+) \|", page)) == {*CLOUD_CORE, *EDGE_CORE}
    named = re.findall(r"`(?:tests/)?([\w/]*test_\w+\.py)(?:::(test_\w+))?`", page)
    assert named
    for file, function in named:
        (found,) = tests.rglob(Path(file).name)
        if function:
            check(file, Row(file, (f"{found.relative_to(tests)}::{function}",)))
