/*
 * CRIU, as a child of init: it writes the application's process into images, or makes it of them.
 *
 * It runs as host root in the instance's PID, mount, network, UTS and IPC namespaces, so that none
 * of them is its to dump or to make. What it restores joins the instance's user namespace by
 * itself. Its program and libraries are the host's: who asks has made sure of that.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int setns(int fd, int nstype);
int unshare(int flags);

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080 /* linux/sched.h; glibc has had it since 2.36 */
#endif
#define REPORT_FD 3
/* The descriptors that it gets are numbered from here; its arguments name them. */
#define FIRST_FD 10
#define MAX_ARGUMENTS 64
/* What it remembers of the kernel from one time to the next, where the application could write. */
#define CACHE "/run/criu.kdat"
/* Above what is restored, so that none of its own processes has that number. */
#define PIDS_APART 64

static int read_arguments(const struct json *list, char *argv[MAX_ARGUMENTS + 1],
			  struct failure *failure)
{
	const struct json *at = list + 1;

	if (!list || list->kind != JSON_LIST || !list->entries || list->entries > MAX_ARGUMENTS)
		return fail(failure, 0, NULL, "no arguments for CRIU, or too many");
	for (uint32_t i = 0; i < list->entries; i++, at = json_next(at)) {
		if (at->kind != JSON_TEXT)
			return fail(failure, 0, NULL, "an argument that is no text");
		argv[i] = (char *)(uintptr_t)at->text;
	}
	argv[list->entries] = NULL;
	return 0;
}

/* Put *fds* from FIRST_FD on, /dev/null on 0, 1 and 2, and the report on REPORT_FD. */
static int place(const int *fds, size_t count, int *report)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int high[MAX_FDS];
	int told = fcntl(*report, F_DUPFD_CLOEXEC, FIRST_FD + MAX_FDS);

	if (null < 0 || told < 0)
		return -1;
	for (size_t i = 0; i < count; i++) {
		high[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, FIRST_FD + MAX_FDS);
		if (high[i] < 0)
			return -1;
	}
	for (int i = 0; i < REPORT_FD; i++)
		if (dup2(null, i) < 0)
			return -1;
	for (size_t i = 0; i < count; i++)
		if (dup2(high[i], FIRST_FD + (int)i) < 0)
			return -1;
	if (dup3(told, REPORT_FD, O_CLOEXEC) < 0)
		return -1;
	*report = REPORT_FD;
	if (syscall(SYS_close_range, REPORT_FD + 1, FIRST_FD - 1, 0))
		return -1;
	return (int)syscall(SYS_close_range, FIRST_FD + (unsigned)count, ~0U, 0);
}

/*
 * Enter the time namespace of the application, which has one of its own if it was restored itself:
 * criu cannot enter it once it is about to dump.
 */
static int join_clocks(void)
{
	char path[32] = "/proc/";
	int fd, failed;

	strcpy(digits(path + strlen(path), (uint64_t)self.application.started.pid, 1), "/ns/time");
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		/* Linux without CONFIG_TIME_NS has one clock for all. */
		return errno == ENOENT ? 0 : -1;
	failed = setns(fd, CLONE_NEWTIME);
	close(fd);
	return failed;
}

static void become(char *const argv[], const int *fds, size_t count, const int *oom_score_adj,
		   int *report, struct failure *failure)
{
	static char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
	static char locale[] = "LC_ALL=C";
	char *const env[] = {path, locale, NULL};
	sigset_t none;

	failure->step = "session";
	if (setsid() < 0)
		goto failed;
	if (oom_score_adj) {
		failure->step = "cgroup";
		/* As for a program (child.c): what is restored inherits both. */
		if (child_join_cgroups() || unshare(CLONE_NEWCGROUP))
			goto failed;
		failure->step = "limits";
		if (child_oom_score_adj(*oom_score_adj))
			goto failed;
	} else {
		failure->step = "time namespace";
		if (join_clocks())
			goto failed;
	}
	failure->step = "descriptors";
	if (place(fds, count, report))
		goto failed;
	failure->step = "signals";
	sigemptyset(&none);
	if (sigprocmask(SIG_SETMASK, &none, NULL))
		goto failed;
	failure->step = "exec";
	execve(argv[0], argv, env);
	fail(failure, errno, argv[0], NULL);
	return;
failed:
	fail(failure, errno, NULL, NULL);
}

/*
 * Start the CRIU of *packet* with *fds*; in the instance's cgroup, with *oom_score_adj*, where what
 * it makes is to be the application.
 */
int criu_start(const struct packet *packet, const int *fds, size_t count, const int *oom_score_adj,
	       struct started *started, struct failure *failure)
{
	char *argv[MAX_ARGUMENTS + 1];
	struct failure told = {0};
	pid_t pid;

	if (read_arguments(json_get(packet->message, "criu"), argv, failure))
		return -1;
	criu_forget();
	pid = child_fork(oom_score_adj != NULL, started, failure);
	if (!pid) {
		become(argv, fds, count, oom_score_adj, &started->report, &told);
		child_failed(started->report, &told);
	}
	return pid < 0 ? -1 : 0;
}

/*
 * Have new processes numbered from beyond *pid* on; *last_pid* is the host's ns_last_pid, which
 * means the PID namespace of the process that writes it (pid_namespaces(7)).
 */
int criu_numbers_from(int last_pid, pid_t pid)
{
	char text[16];
	char *end = digits(text, (uint64_t)pid + PIDS_APART, 1);

	return write(last_pid, text, (size_t)(end - text)) < 0 ? -1 : 0;
}

/* Nobody but CRIU itself may tell it about the kernel, and nothing of it stays. */
void criu_forget(void)
{
	unlink(CACHE);
}
