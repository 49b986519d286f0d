"""The known faults of upstream's device twin, and which test shows that each of them is not in here."""

import pytest

from tests.proofs import Row, check

FAULTS: dict[str, Row] = {
    "W1": Row(
        "a role without devicestatuses keeps every device from its node",
        ("cloudcore/test_downstream_gaps.py::test_a_role_without_statuses_keeps_no_device_from_its_node",),
    ),
    "W2": Row(
        "the first report of a property is stored with empty values",
        (
            "cloudcore/test_device_reports.py::test_ten_properties_are_one_patch_and_one_confirmation",
            "edgecore/test_flow_path.py::test_an_unchanged_value_is_told_again_after_some_time_only",
        ),
    ),
    "W3": Row(
        "a device that names no model ends CloudCore, at every start",
        ("cloudcore/test_downstream_gaps.py::test_devices_without_a_model_end_nothing_and_hold_nobody_up",),
    ),
    "W4": Row(
        "what changes while the node is away never reaches the mapper",
        (
            "cloudcore/test_device_downstream.py::test_device_changed_while_its_node_was_away",
            "edgecore/test_edgecore_recovery.py::test_devices_deleted_or_changed_meanwhile",
            "edgecore/test_upstream_gaps.py::test_a_model_that_changed_while_the_cloud_was_away_reaches_the_mapper",
        ),
    ),
    "W5": Row(
        "the edge's question for its devices is never answered",
        (
            "cloudcore/test_device_downstream.py::test_membership_detail_is_confirmed_then_listed_then_sent_in_full",
            "edgecore/test_edgecore_path.py::test_connects_says_it_is_there_and_asks_for_its_devices",
        ),
    ),
    "W6": Row(
        "reports are dropped while the cloud is away",
        (
            "edgecore/test_edgecore_recovery.py::test_values_of_a_time_without_cloud_arrive",
            "e2e/test_cut_and_kill.py::test_100_values_changed_while_the_cloud_is_away_arrive",
        ),
    ),
    "W7": Row(
        "unconfirmed reports are repeated late, in any order and for ever, and an old value can win",
        (
            "edgecore/test_edgecore_twins.py::test_an_unconfirmed_message_is_sent_again",
            "edgecore/test_edgecore_twins.py::test_a_device_that_is_gone_is_forgotten",
            "edgecore/test_edgecore_recovery.py::test_at_most_one_message_of_a_device_is_in_flight",
            "cloudcore/test_device_reports.py::test_older_collection_time_does_not_overwrite",
        ),
    ),
    "W8": Row(
        "messages of a device overtake each other",
        (
            "edgecore/test_twin_apps.py::test_many_at_once_are_all_done",
            "edgecore/test_edgecore_twins.py::test_any_order_ends_with_the_newest",
            "edgecore/test_eventbus_internal.py::test_more_than_is_taken_at_once_is_taken_in_order",
        ),
    ),
    "W9": Row(
        "one call a second for all mappers together, registrations among them",
        (
            "edgecore/test_dmi_limits.py::test_one_mappers_flood_stands_in_nobody_elses_way",
            "edgecore/test_dmi_limits.py::test_the_limit_of_the_configuration_counts",
        ),
    ),
    "W10": Row(
        "devices are lost whose namespace is part of the topic's fixed text",
        (
            "edgecore/test_upstream_gaps.py::test_reports_of_devices_in_namespaces_that_are_parts_of_a_topic",
            "edgecore/test_twin_apps.py::test_any_namespace_will_do",
            "edgecore/test_twin_requests.py::test_topics",
            "cloudedge/test_message.py::test_device_reports_are_told_apart_by_element_not_by_substring",
        ),
    ),
    "W11": Row(
        "an update or a sync with a part missing ends the worker, with the device locked",
        (
            "edgecore/test_twin_apps.py::test_what_is_missing_is_absent",
            "edgecore/test_twin_apps.py::test_bad_payloads_are_answered_and_nothing_else_suffers",
            "edgecore/test_upstream_gaps.py::test_a_sync_with_parts_missing_leaves_the_device_working",
        ),
    ),
    "W12": Row(
        "a mapper's report with one side only ends EdgeCore",
        ("dmi/test_report.py::test_a_side_that_is_not_there_is_not_an_empty_one",),
    ),
    "W13": Row(
        "without a broker all of the twin stands still after a thousand reports",
        (
            "edgecore/test_upstream_gaps.py::test_reports_go_on_for_ever_while_there_is_no_broker",
            "edgecore/test_eventbus_external.py::test_a_dead_broker_costs_nothing_but_mqtt",
        ),
    ),
    "W14": Row(
        "any node may report for any device",
        ("cloudcore/test_device_reports.py::test_a_node_reports_only_its_own_devices",),
    ),
    "W15": Row(
        "unchanged values are written, sent and patched all the same",
        (
            "edgecore/test_flow_path.py::test_an_unchanged_value_is_told_again_after_some_time_only",
            "cloudcore/test_device_reports.py::test_unchanged_report_is_confirmed_without_a_patch",
        ),
    ),
    "W16": Row(
        "several workers at one status lose each other's updates",
        (
            "cloudcore/test_downstream_gaps.py::test_reports_of_one_device_at_once_lose_no_property",
            "cloudcore/test_keyed_queue.py::test_every_key_added_is_worked_on_and_never_by_two",
        ),
    ),
    "W17": Row(
        "a mapper's new address is forgotten, and one that wants no data is never called",
        (
            "edgecore/test_upstream_gaps.py::test_the_address_of_a_mapper_that_moved_outlives_a_restart",
            "edgecore/test_edgecore_bad_input.py::test_a_mapper_that_wants_no_data_is_called_all_the_same",
        ),
    ),
    "W18": Row(
        "two senders of one object: the mapper keeps the old model",
        (
            "edgecore/test_edgecore_path.py::test_a_changed_model_reaches_the_mapper",
            "cloudcore/test_device_downstream.py::test_changes_reach_the_node",
            "cloudcore/test_cloudhub.py::test_unacknowledged_object_is_sent_again_under_its_id",
        ),
    ),
    "W19": Row(
        "large integers lose digits, and a key named data breaks the conversion; nested values are refused",
        (
            "dmi/test_config_values.py::test_it_arrives_as_it_was_declared",
            "edgecore/test_edgecore_recovery.py::test_a_declaration_that_cannot_be_run_leaves_the_last_good_one",
        ),
    ),
    "W20": Row(
        "a device that is declared again loses its attributes",
        ("edgecore/test_twin_apps.py::test_a_known_device_declared_again_keeps_everything",),
    ),
    "W21": Row(
        "a device that cannot be stored ends EdgeCore",
        ("edgecore/test_flow_path.py::test_what_is_not_on_a_disk_is_used_and_not_acknowledged",),
    ),
    "W22": Row(
        "a missing model holds up all other devices",
        (
            "cloudcore/test_downstream_gaps.py::test_devices_without_a_model_end_nothing_and_hold_nobody_up",
            "cloudcore/test_device_downstream.py::test_model_that_comes_after_its_device",
        ),
    ),
    "W23": Row(
        "going offline erases when a device was online, and a wrong state has no answer",
        (
            "edgecore/test_twin_apps.py::test_going_offline_keeps_when_it_was_online",
            "edgecore/test_upstream_gaps.py::test_a_state_that_is_none_is_answered",
            "edgecore/test_edgecore_bad_input.py::test_other_states_are_refused",
        ),
    ),
    "W24": Row(
        "ordinary values and two types are rejected, and the mapper is told that all is well",
        (
            "edgecore/test_twin_apps.py::test_any_value_of_its_type_comes_back",
            "edgecore/test_edgecore_bad_input.py::test_any_text_is_a_value",
            "edgecore/test_edgecore_bad_input.py::test_a_value_that_is_too_large_is_refused",
        ),
    ),
    "W25": Row(
        "calls to a mapper that failed are not made again, and a deleted device comes back",
        (
            "edgecore/test_edgecore_recovery.py::test_a_refusing_mapper_is_tried_until_it_takes_the_device",
            "edgecore/test_upstream_gaps.py::test_a_device_whose_removal_failed_is_not_handed_out_again",
            "edgecore/test_edgecore_path.py::test_a_new_device_is_handed_over_after_its_model",
        ),
    ),
    "W26": Row(
        "properties that are no longer declared stay",
        (
            "edgecore/test_flow_pruning.py::test_a_removed_property_is_gone_from_the_store_mqtt_facts_and_history",
            "cloudcore/test_device_reports.py::test_removed_property_is_pruned_though_nobody_reports",
        ),
    ),
    "W27": Row(
        "a subscription that failed is not asked for again",
        (
            "edgecore/test_eventbus_internal.py::test_a_subscription_that_is_refused_is_said_and_asked_for_again",
            "edgecore/test_eventbus_external.py::test_a_dead_broker_costs_nothing_but_mqtt",
        ),
    ),
    "W28": Row(
        "a device update from the edge's API server is stored under a name that all devices share",
        not_applicable="there is no such API server; objects come from the cloud alone, under their own names",
    ),
    "W29": Row(
        "a worker that is slow gets a second one beside it",
        ("edgecore/test_edgecore_recovery.py::test_a_device_is_handed_over_in_order_and_ends_with_the_newest",),
    ),
    "W30": Row(
        "twins have no index",
        ("edgecore/test_upstream_gaps.py::test_a_property_has_one_row_and_it_is_found_without_reading_all",),
    ),
}


def test_every_fault_has_its_row() -> None:
    assert list(FAULTS) == [f"W{number}" for number in range(1, 31)]


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_shown_to_be_absent(name: str) -> None:
    check(name, FAULTS[name])
