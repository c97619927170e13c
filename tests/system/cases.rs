//! The cases, by what they are about. Each is an async function that fails with an error or a panic.

mod bad_starts;
mod confinement;
mod files;
mod hostile;
mod life;
mod limits;
mod machine;
mod processes;
mod refusals;
mod snapshots;

use crate::context::Context;
use anyhow::Result;
use futures::future::BoxFuture;
use std::time::Duration;

pub struct Case {
    pub name: &'static str,
    pub run: fn(Context) -> BoxFuture<'static, Result<()>>,
    /// `None`: the runner's
    pub limit: Option<Duration>,
}

macro_rules! cases {
    ($($module:ident: $($name:ident $(within $seconds:literal s)?),+;)+) => {
        pub fn all() -> Vec<Case> {
            vec![$($(Case {
                name: stringify!($name),
                run: |context| Box::pin($module::$name(context)),
                limit: cases!(@limit $($seconds)?),
            },)+)+]
        }
    };
    (@limit) => { None };
    (@limit $seconds:literal) => { Some(Duration::from_secs($seconds)) };
}

cases! {
    life: boots_with_every_kernel within 400 s, run_is_create_exec_delete, stop_has_its_reason, time_to_live_ends_it,
        guest_power_off_and_reset_are_told_apart, killed_vmm_is_vmm_failed, agent_restart_keeps_the_sandbox,
        scheduler_restart_keeps_the_sandbox;
    processes: output_comes_as_it_is_written, python_reads_its_script_from_stdin, git_commits,
        exit_code_is_the_processs_own, terminal_has_a_size_and_can_be_resized, signals_reach_the_process,
        time_limit_ends_the_process, client_that_leaves_ends_its_process, missing_command_is_127,
        user_directory_and_environment, console_is_kept;
    limits: fork_bomb_leaves_the_sandbox_answering, disk_of_its_own_is_a_limit,
        stdin_that_nobody_reads_is_bounded, output_that_nobody_reads_is_bounded, memory_limit_holds;
    files: content_and_mode_survive, bad_paths_are_refused, special_files_are_refused,
        write_past_the_disk_limit_changes_nothing;
    hostile: two_and_eight_processors within 400 s, panic_is_told_as_one, clock_of_the_guest_is_its_own,
        what_a_kernel_permits_hurts_itself_alone, workload_reaches_no_port_of_the_host;
    refusals: bad_specs_are_refused, request_id_is_idempotent, what_no_node_can_hold_is_refused_at_once,
        exec_needs_a_running_sandbox, full_fleet_lets_wait;
    snapshots: pause_gives_memory_back_and_resume_brings_all_back within 400 s,
        paused_sandbox_outlives_its_agent_and_can_be_deleted within 400 s,
        forks_go_on_apart_from_one_instant within 400 s, create_from_a_template_is_a_restore within 400 s;
    machine: memory_and_processors_are_of_the_kind_that_was_asked_for within 400 s,
        restored_machine_goes_on_with_all_its_devices within 400 s, power_button_is_a_clean_shutdown;
    confinement: every_seccomp_rule_is_used within 240 s;
    bad_starts: kernel_that_is_none, initramfs_that_panics, root_image_that_is_cut;
    life: nothing_is_left_at_the_end;
}
