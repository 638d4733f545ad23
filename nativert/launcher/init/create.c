/*
 * From clone to the loop of init: a copy of the launcher, in new PID and mount namespaces, becomes
 * the init of one instance.
 *
 * It builds the root file system, enters the other namespaces and opens what init needs; after the
 * change of the root it goes on by descriptors only.
 */
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define CONTROL_FD 3
#define BACKLOG 512
#define PLACE (O_PATH | O_DIRECTORY | O_CLOEXEC)

/* Name this process, in comm and in what ps shows as its arguments. */
void name_process(const char *name)
{
	memset(launcher.name, 0, launcher.name_room);
	strncpy(launcher.name, name, launcher.name_room - 2);
	/* An end that is no NUL has the kernel show it up to the first one (setproctitle(3)). */
	launcher.name[launcher.name_room - 1] = '.';
	prctl(PR_SET_NAME, name, 0, 0, 0);
}

/* Open what *object* names under *key*; -1 in *fd* where it has null or nothing. */
static int open_named(const struct json *object, const char *key, int flags, int *fd,
		      struct failure *failure)
{
	const struct json *found = json_get(object, key);

	*fd = -1;
	if (!found || found->kind == JSON_NULL)
		return 0;
	if (found->kind != JSON_TEXT)
		return fail(failure, EINVAL, NULL, "a plan with what is no name");
	*fd = open(found->text, flags | O_CLOEXEC);
	return *fd < 0 ? fail(failure, errno, found->text, NULL) : 0;
}

static int listen_in(int directory, struct failure *failure)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	/* Short however long the directory's path is: sun_path holds 108 bytes (unix(7)). */
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/init.sock", directory);
	if (sock < 0 || bind(sock, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(sock, BACKLOG))
		return fail(failure, errno, "init.sock", NULL);
	self.listener = sock;
	return 0;
}

/* What is opened by names of the host, while they mean that. */
static int open_places(const struct json *sandbox, struct failure *failure)
{
	const struct json *log = json_get(sandbox, "log");
	const struct json *cgroup = json_get(sandbox, "cgroup");
	int64_t max_bytes, files;
	int directory;

	if (open_named(sandbox, "directory", PLACE, &self.directory, failure) ||
	    open_named(log, "directory", PLACE, &directory, failure))
		return -1;
	if (self.directory < 0 || directory < 0 ||
	    !json_integer(log, "max_bytes", 1, INT64_MAX / 2, &max_bytes) ||
	    !json_integer(log, "files", 1, 100000, &files))
		return fail(failure, EINVAL, NULL, "a plan without directory or log");
	log_init(&self.log, directory, max_bytes, (int)files);
	if (listen_in(self.directory, failure))
		return -1;
	return open_named(cgroup, "oom", O_RDONLY, &self.evidence.oom, failure) ||
	       open_named(cgroup, "peak", O_RDONLY, &self.evidence.peak, failure) ||
	       open_named(cgroup, "cpu", O_RDONLY, &self.evidence.cpu, failure) ||
	       open_named(cgroup, "pids", O_RDONLY, &self.evidence.pids, failure);
}

static int read_filter(const struct json *sandbox, struct failure *failure)
{
	size_t length = 0;
	int fd;
	char *program;

	if (open_named(sandbox, "seccomp", O_RDONLY, &fd, failure))
		return -1;
	if (fd < 0)
		return fail(failure, EINVAL, NULL, "a plan without a filter");
	program = slurp(fd, &length);
	if (!program)
		return fail(failure, errno, "seccomp", NULL);
	self.around.seccomp.filter = (struct sock_filter *)(void *)program;
	self.around.seccomp.len = (unsigned short)(length / sizeof(struct sock_filter));
	return 0;
}

/* The cgroups of what init starts, and the filter that it gets. */
static int open_cgroup(const struct json *sandbox, struct failure *failure)
{
	const struct json *cgroup = json_get(sandbox, "cgroup");
	const struct json *tasks = json_get(cgroup, "tasks");
	const struct json *at = tasks ? tasks + 1 : NULL;

	if (read_filter(sandbox, failure))
		return -1;
	if (!tasks || tasks->kind != JSON_LIST || tasks->entries > MAX_TASKS)
		return fail(failure, EINVAL, NULL, "no list of cgroups");
	for (uint32_t i = 0; i < tasks->entries; i++, at = json_next(at)) {
		int fd;

		if (at->kind != JSON_TEXT)
			return fail(failure, EINVAL, NULL, "a cgroup that is no name");
		fd = open(at->text, O_WRONLY | O_CLOEXEC);
		if (fd < 0)
			return fail(failure, errno, at->text, NULL);
		self.around.tasks[self.around.task_count++] = fd;
	}
	return open_named(cgroup, "into", O_RDONLY | O_DIRECTORY, &self.around.into, failure);
}

/* Wait for the namespaces, which the launcher makes meanwhile on another CPU. */
static int receive_namespaces(int control, int held[MAX_HELD])
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int) * MAX_HELD)];
	} rights;
	char count;
	struct iovec iov = {.iov_base = &count, .iov_len = 1};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &rights,
		.msg_controllen = sizeof(rights),
	};
	struct cmsghdr *first;

	for (size_t i = 0; i < MAX_HELD; i++)
		held[i] = -1;
	if (recvmsg(control, &msg, MSG_CMSG_CLOEXEC) <= 0)
		return -1;
	first = CMSG_FIRSTHDR(&msg);
	if (!first || first->cmsg_type != SCM_RIGHTS)
		return -1;
	memcpy(held, CMSG_DATA(first), first->cmsg_len - CMSG_LEN(0));
	return 0;
}

static int enter_namespaces(const struct json *sandbox, int control, bool network,
			    struct failure *failure)
{
	const char *hostname = json_text(sandbox, "hostname");
	int held[MAX_HELD];
	int64_t id_base, id_count;

	failure->step = "namespaces";
	if (receive_namespaces(control, held) || namespaces_join(held))
		return fail(failure, errno, NULL, NULL);
	self.around.user = held[HELD_USER];
	for (size_t i = 0; i < MAX_HELD; i++)
		if (i != HELD_USER)
			close_fd(&held[i]);
	failure->step = "hostname";
	if (!hostname)
		return fail(failure, EINVAL, NULL, "a plan without a host name");
	if (sethostname(hostname, strlen(hostname)))
		return fail(failure, errno, NULL, NULL);
	failure->step = "network namespace";
	if (!json_integer(sandbox, "id_base", 1, UINT32_MAX, &id_base) ||
	    !json_integer(sandbox, "id_count", 1, UINT32_MAX, &id_count))
		return fail(failure, EINVAL, NULL, "a plan without a range of ids");
	self.around.id_base = (uint32_t)id_base;
	if (network && (loopback_up() || allow_unprivileged_network(id_base, id_count)))
		return fail(failure, errno, NULL, NULL);
	return 0;
}

static int watch_children(struct failure *failure)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	self.signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	return self.signals < 0 ? fail(failure, errno, "signalfd", NULL) : 0;
}

static int set_up(const struct json *sandbox, int control, struct failure *failure)
{
	const char *directory = json_text(sandbox, "directory");
	bool network = json_true(sandbox, "network");
	char new_root[4096];
	int64_t shm_bytes;
	int root;

	if (!directory || !json_integer(sandbox, "shm_bytes", 1, INT64_MAX, &shm_bytes) ||
	    snprintf(new_root, sizeof(new_root), "%s/root", directory) >= (int)sizeof(new_root))
		return fail(failure, EINVAL, NULL, "no plan");
	setsid();
	if (watch_children(failure) || open_places(sandbox, failure))
		return -1;
	failure->step = "root file system";
	if (make_private())
		return fail(failure, errno, "/", NULL);
	root = rootfs_build(new_root, json_get(sandbox, "root"), shm_bytes, failure);
	if (root < 0 || enter_namespaces(sandbox, control, network, failure))
		return -1;
	failure->step = "cgroup";
	if (open_cgroup(sandbox, failure))
		return -1;
	failure->step = "root file system";
	return rootfs_finish(new_root, root, network, failure);
}

/* The launcher's descriptors are not init's: after this there are control, and 0, 1 and 2. */
static void close_others(int control)
{
	if (control != CONTROL_FD)
		dup3(control, CONTROL_FD, O_CLOEXEC);
	syscall(SYS_close_range, CONTROL_FD + 1, ~0U, 0);
}

static int join_init_cgroup(void)
{
	/* Where there is no cgroup2 to be born into. */
	for (size_t i = 0; i < launcher.init_task_count; i++)
		if (write(launcher.init_tasks[i], "0", 1) < 0)
			return -1;
	return 0;
}

/* Become the init of *sandbox*, a launcher/plan.py Sandbox; *control* hears how that went. */
_Noreturn void become_init(const struct json *sandbox, int control)
{
	const char *instance = json_text(sandbox, "instance");
	struct failure failure = {.step = "init"};
	char name[64];
	int failed;

	snprintf(name, sizeof(name), "nativert-init %.8s", instance ? instance : "?");
	name_process(name);
	failed = join_init_cgroup() ? fail(&failure, errno, "init's cgroup", NULL) : 0;
	close_others(control);
	failed = failed || set_up(sandbox, CONTROL_FD, &failure);
	text_open(&outgoing);
	if (failed)
		put_failure(&outgoing, &failure);
	else
		put_bool(&outgoing, "ok", true);
	text_close(&outgoing);
	/* A launcher that has died meanwhile has told nobody of this init. */
	failed |= packet_send(CONTROL_FD, &outgoing, NULL, 0);
	close(CONTROL_FD);
	if (failed)
		_exit(1);
	loop();
}
