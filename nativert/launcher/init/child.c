/*
 * A program's child, from fork to exec, step by step.
 *
 * Order (each step needs what the one before it set, or would be refused after the next):
 * session, cgroups, cgroup namespace, limits, terminal, user namespace, descriptors, ids, working
 * directory, capabilities, signals, seccomp, exec. A failure is one report on a CLOEXEC pipe;
 * end-of-file without a report means that exec happened. The child allocates nothing.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int setns(int fd, int nstype);
int unshare(int flags);

#define REPORT_FD 3
/*
 * uid 0 is an ordinary id (NOROOT), set*uid changes no capability (NO_SETUID_FIXUP); both locked.
 * KEEP_CAPS means nothing beside the latter, and locking it would end programs that switch it on
 * to be sure, such as Debian's ping. Nothing can be raised into the ambient set either, since the
 * permitted set is empty.
 */
#define SECUREBITS                                                                                 \
	(SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP |                           \
	 SECBIT_NO_SETUID_FIXUP_LOCKED)

int child_join_cgroups(void)
{
	for (size_t i = 0; i < self.around.task_count; i++)
		if (write(self.around.tasks[i], "0", 1) < 0)
			return -1;
	return 0;
}

int child_oom_score_adj(int value)
{
	char text[16] = "-";
	char *end = digits(text + 1, (uint64_t)(value < 0 ? -(int64_t)value : value), 1);
	char *first = value < 0 ? text : text + 1;
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	ssize_t written;

	if (fd < 0)
		return -1;
	written = write(fd, first, (size_t)(end - first));
	close(fd);
	return written < 0 ? -1 : 0;
}

static int set_limits(const struct program *program, struct failure *failure)
{
	if (child_oom_score_adj(program->oom_score_adj))
		return fail(failure, errno, "oom_score_adj", NULL);
	for (size_t i = 0; i < program->limit_count; i++)
		if (setrlimit(program->limits[i].resource, &program->limits[i].value))
			/* EINVAL, a soft limit above the hard one, is as little allowed. */
			return fail(failure, EPERM, program->limits[i].name, strerror(errno));
	return 0;
}

/* Copies above the targets first, so that no dup2 overwrites what a later one needs. */
static int place(const int stdio[3], int *report)
{
	int high[4];

	for (int i = 0; i < 4; i++) {
		high[i] = fcntl(i < 3 ? stdio[i] : *report, F_DUPFD_CLOEXEC, 10);
		if (high[i] < 0)
			return -1;
	}
	*report = high[3];
	for (int i = 0; i < 4; i++)
		if (dup3(high[i], i, i == REPORT_FD ? O_CLOEXEC : 0) < 0)
			return -1;
	*report = REPORT_FD;
	return (int)syscall(SYS_close_range, REPORT_FD + 1, ~0U, 0);
}

static int become(const struct program *program)
{
	if (setgroups(program->group_count, program->groups))
		return -1;
	if (setresgid(program->gid, program->gid, program->gid))
		return -1;
	return setresuid(program->uid, program->uid, program->uid);
}

/* Give up every capability, and every way to get one; see capabilities(7). */
static int drop_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};

	/* Entering a user namespace filled the bounding set, whatever init's was. */
	for (int i = 0; i <= self.around.last_capability; i++)
		if (prctl(PR_CAPBSET_DROP, i, 0, 0, 0))
			return -1;
	if (prctl(PR_SET_SECUREBITS, SECUREBITS, 0, 0, 0))
		return -1;
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		return -1;
	/* set*uid left them: the id before was not the namespace's root (user_namespaces(7)). */
	if (syscall(SYS_capset, &header, none))
		return -1;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static int try_candidate(const struct program *program, const char *path, struct failure *refused)
{
	struct stat about;

	execve(path, program->argv, program->env);
	if (errno == ENOENT && !stat(path, &about))
		/* So the kernel reports that a "#!" or ELF interpreter is absent. */
		return fail(refused, ELIBACC, path, "its interpreter or loader is not there");
	if (errno != ENOENT && errno != ENOTDIR && !refused->number)
		fail(refused, errno, NULL, NULL);
	return 0;
}

static int execute(const struct program *program, struct failure *failure)
{
	const char *name = program->argv[0];
	const char *part = program->path;

	if (strchr(name, '/')) {
		if (try_candidate(program, name, failure))
			return -1;
		if (failure->number)
			return fail(failure, failure->number, name, NULL);
		return fail(failure, ENOENT, name, "no such program");
	}
	for (;;) {
		size_t length = strcspn(part, ":");
		char *to = program->candidate;
		int before = failure->number;

		if (length)
			to = mempcpy(to, part, length);
		else
			*to++ = '.';
		*to++ = '/';
		strcpy(to, name);
		if (try_candidate(program, program->candidate, failure))
			return -1;
		if (failure->number && !before) {
			/* The first refusal is told if no later part of PATH has the program. */
			static char first[sizeof(((struct report *)0)->path)];

			strncpy(first, program->candidate, sizeof(first) - 1);
			fail(failure, failure->number, first, NULL);
		}
		if (!part[length])
			break;
		part += length + 1;
	}
	if (failure->number)
		return -1;
	return fail(failure, ENOENT, name, "no such program");
}

/* Step by step; returns what failed. A step that says no more than errno leaves the rest to us. */
static void steps(const struct program *program, const int stdio[3], bool terminal, int *report,
		  struct failure *failure)
{
	sigset_t none;

	failure->step = "session";
	if (setsid() < 0)
		goto failed;
	failure->step = "cgroup";
	if (child_join_cgroups())
		goto failed;
	failure->step = "cgroup namespace";
	/*
	 * Only now, in the cgroup: one made before shows /../ and, under nsdelegate, refuses to be
	 * joined (cgroup_namespaces(7)).
	 */
	if (unshare(CLONE_NEWCGROUP))
		goto failed;
	failure->step = "limits";
	if (set_limits(program, failure))
		return;
	if (terminal) {
		failure->step = "terminal";
		if (fchown(stdio[0], self.around.id_base + program->uid,
			   self.around.id_base + program->gid) ||
		    ioctl(stdio[0], TIOCSCTTY, 0))
			goto failed;
	}
	failure->step = "user namespace";
	if (setns(self.around.user, CLONE_NEWUSER))
		goto failed;
	failure->step = "descriptors";
	if (place(stdio, report))
		goto failed;
	failure->step = "user";
	if (become(program))
		goto failed;
	failure->step = "working directory";
	if (chdir(program->cwd)) {
		fail(failure, errno, program->cwd, NULL);
		return;
	}
	umask(program->umask);
	failure->step = "capabilities";
	if (drop_capabilities())
		goto failed;
	failure->step = "signals";
	sigemptyset(&none);
	if (sigprocmask(SIG_SETMASK, &none, NULL))
		goto failed;
	failure->step = "seccomp";
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &self.around.seccomp))
		goto failed;
	failure->step = "exec";
	execute(program, failure);
	return;
failed:
	fail(failure, errno, NULL, NULL);
}

/* Tell who forked this child that it does not become what it was forked for. */
_Noreturn void child_failed(int report, const struct failure *failure)
{
	static struct report told;

	told.number = failure->number;
	strncpy(told.step, failure->step, sizeof(told.step) - 1);
	strncpy(told.text, failure->text, sizeof(told.text) - 1);
	if (failure->path)
		strncpy(told.path, failure->path, sizeof(told.path) - 1);
	/* If it cannot be told nobody is there to hear it. */
	if (write(report, &told, sizeof(told)) < 0)
		_exit(126);
	_exit(127);
}

/*
 * Fork, *inside* the instance's cgroup where that is a cgroup2 or beside it. Returns twice, as
 * fork(2) does; *started* has the reading end of the report in init, the writing end in the child.
 */
pid_t child_fork(bool inside, struct started *started, struct failure *failure)
{
	int report[2];
	int pidfd = -1;
	struct clone_args args = {
		.flags = CLONE_PIDFD,
		.pidfd = (uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
	};
	long pid;

	if (pipe2(report, O_CLOEXEC | O_NONBLOCK))
		return fail(failure, errno, NULL, NULL);
	if (inside && self.around.into >= 0) {
		/*
		 * Attaches without the write lock that a later move would take (an RCU grace
		 * period, 7-12 ms after a quiet spell).
		 */
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)self.around.into;
	}
	/* Without CLONE_VM: init never waits for a child whose exec hangs on a dead file system. */
	pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid < 0) {
		fail(failure, errno, NULL, NULL);
		close(report[0]);
		close(report[1]);
		return -1;
	}
	if (!pid) {
		started->report = report[1];
		return 0;
	}
	close(report[1]);
	*started = (struct started){.pid = (pid_t)pid, .pidfd = pidfd, .report = report[0]};
	return (pid_t)pid;
}

/*
 * Fork and start *program*. *stdio* stay the caller's; with *terminal* the first of them becomes
 * the controlling terminal.
 */
int child_start(const struct program *program, const int stdio[3], bool terminal,
		struct started *started, struct failure *failure)
{
	struct failure told = {0};
	pid_t pid = child_fork(true, started, failure);

	if (!pid) {
		steps(program, stdio, terminal, &started->report, &told);
		child_failed(started->report, &told);
	}
	return pid < 0 ? -1 : 0;
}

/* Read what a child told; *report* holds the text of *failure*. */
enum reported child_report(int fd, struct report *report, struct failure *failure)
{
	ssize_t got = read(fd, report, sizeof(*report));

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return REPORT_NONE_YET;
	if (!got)
		return REPORT_EXECUTED;
	if (got != sizeof(*report)) {
		/* Whatever it was, the program was not started. */
		*failure = (struct failure){.step = "report", .text = "the start was cut short"};
		return REPORT_FAILED;
	}
	*failure = (struct failure){
		.step = report->step,
		.number = report->number,
		.path = report->path[0] ? report->path : NULL,
		.text = report->text,
	};
	return REPORT_FAILED;
}
