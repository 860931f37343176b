# What the templates share. They source it, so submit them from the folder that holds jobs/.
#   PYTHON  what runs Python, as "apptainer exec --nv slidefield.sif python"  (python)
set -u
read -ra python <<<"${PYTHON:-python}"
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # since Slurm 22.05 srun does not take it from sbatch

# sample JOB.yaml [options], or options alone: engine.sample on all ranks
sample() {
    case ${1:--} in -*) ;; *) set -- --job "$@" ;; esac
    step "${python[@]}" -m engine.sample "$@"
}

# step COMMAND [arguments]: run it on all ranks and end with its status. USR1 and TERM, which Slurm sends to this shell
# alone, reach every rank. What was stopped by them, or left by itself with status 75, goes on when the job runs again:
# it is queued once more, under the same number.
step() {
    local ranks status signalled asked= restart
    # MPICH names its shared memory by job and step, and what was killed leaves it behind, on which its successor would
    # stumble. A job that runs again therefore takes another number for its step.
    for ((restart = 0; restart < ${SLURM_RESTART_COUNT:-0}; restart++)); do
        srun --nodes=1 --ntasks=1 --ntasks-per-node=1 true
    done
    # --mpi: pmi2 for MPICH, pmix for Open MPI (srun --mpi=list). --kill-on-bad-exit ends all when one rank is killed.
    srun --mpi="${SLURM_MPI_TYPE:-pmi2}" --kill-on-bad-exit=1 "$@" &
    ranks=$!
    trap 'signalled=1 asked=1; kill -USR1 "$ranks" 2>/dev/null' USR1 TERM
    while true; do
        signalled=
        wait "$ranks"
        status=$?
        [ -n "$signalled" ] || break # a signal ends `wait`, not the ranks
    done
    # Above 128: ended by the signal itself, which came before Python could take it.
    if [ "$status" -eq 75 ] || { [ -n "$asked" ] && [ "$status" -gt 128 ]; }; then
        again
    fi
    exit "$status"
}

# Queue this job again, unless it is just being cancelled.
again() {
    if [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
        echo "stopped in time: job $SLURM_JOB_ID is queued again"
        scontrol requeue "$SLURM_JOB_ID"
    fi
}
