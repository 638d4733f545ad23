/*
 * The verb create: creations that wait for their init's word, and the ends of children.
 *
 * It answers with init's pid, its pidfd and the network namespace. What is not handed over to
 * somebody is killed.
 */
#include "launcher.h"

#include <errno.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_HELPERS 16
/* An init that has not answered by then is killed: a hung mount must not hold its caller. */
#define CREATE_TIMEOUT_S 30
/* Not for ever: one whose mount hangs in the kernel must not hold all the others. */
#define KILL_TIMEOUT_MS 1000

/* A creation that waits for init's word. */
struct pending {
	int control; /* -1: free */
	struct client *client;
	pid_t pid;
	int pidfd;
	int network;
	int64_t deadline_ns;
	int poll;
};

static struct pending pendings[MAX_PENDING];
static size_t pending_count;
static pid_t helpers[MAX_HELPERS];
static size_t helper_count;
static size_t children;

static void finish(struct pending *pending, bool made, const struct failure *failure);

/* ---- children ---- */

/* Take *pid* from the helpers of namespaces.c; tell whether it was one. */
static bool was_helper(pid_t pid)
{
	for (size_t i = 0; i < helper_count; i++) {
		if (helpers[i] != pid)
			continue;
		helpers[i] = helpers[--helper_count];
		return true;
	}
	return false;
}

void children_reap(void)
{
	char siginfo[1024];
	pid_t pid;

	/* Take note of all of them: what they say is asked for anew. */
	while (read(launcher.signals, siginfo, sizeof(siginfo)) > 0)
		;
	while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
		if (!was_helper(pid) && children)
			children--;
	if (pid < 0 && errno == ECHILD)
		children = helper_count = 0;
}

size_t children_alive(void)
{
	return children;
}

static void remember_helper(pid_t pid)
{
	if (!pid)
		return;
	if (helper_count == MAX_HELPERS) {
		waitpid(helpers[0], NULL, 0);
		was_helper(helpers[0]);
	}
	helpers[helper_count++] = pid;
}

/* ---- creation ---- */

/* Fork into new PID and mount namespaces, and into the cgroup of inits where it is a cgroup2. */
static pid_t clone_init(int *pidfd)
{
	struct clone_args args = {
		.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_PIDFD,
		.pidfd = (uintptr_t)pidfd,
		.exit_signal = SIGCHLD,
	};

	if (launcher.init_cgroup >= 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)launcher.init_cgroup;
	}
	return (pid_t)syscall(SYS_clone3, &args, sizeof(args));
}

static int begin(struct pending *pending, const struct json *sandbox, struct failure *failure)
{
	int held[MAX_HELD];
	int64_t id_base = 0, id_count = 0;
	static const struct text nothing = {.length = 1, .data = "n"};
	pid_t helper;
	size_t fds = 0;

	if (failpoint("launcher.cloned", failure))
		return -1;
	/* Out of a range or absent, they stay 0 and are refused. */
	json_integer(sandbox, "id_base", 0, INT64_MAX, &id_base);
	json_integer(sandbox, "id_count", 0, INT64_MAX, &id_count);
	/* While init builds its root on another CPU. */
	if (namespaces_create(id_base, id_count, json_true(sandbox, "network"), held, &helper,
			      failure)) {
		remember_helper(helper);
		return -1;
	}
	remember_helper(helper);
	while (fds < MAX_HELD && held[fds] >= 0)
		fds++;
	/* If init has ended, what it said is read later. */
	packet_send(pending->control, &nothing, held, fds);
	pending->network = held[HELD_NET];
	held[HELD_NET] = -1;
	for (size_t i = 0; i < MAX_HELD; i++)
		close_fd(&held[i]);
	return 0;
}

void create(struct client *client, const struct packet *packet, struct failure *failure)
{
	const struct json *sandbox = json_get(packet->message, "sandbox");
	struct pending *pending = pendings;
	struct failure told = {.step = "namespaces"};
	int control[2];
	int pidfd = -1;
	pid_t pid;

	if (pending_count == MAX_PENDING) {
		fail(failure, EAGAIN, NULL, "256 creations are under way");
		return;
	}
	while (pending->control >= 0)
		pending++;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control)) {
		fail(failure, errno, NULL, NULL);
		return;
	}
	pid = clone_init(&pidfd);
	if (!pid)
		become_init(sandbox, control[1]);
	close(control[1]);
	if (pid < 0) {
		fail(failure, errno, NULL, NULL);
		close(control[0]);
		return;
	}
	*pending = (struct pending){
		.control = control[0],
		.client = client,
		.pid = pid,
		.pidfd = pidfd,
		.network = -1,
		.deadline_ns = now_ns(CLOCK_MONOTONIC) + CREATE_TIMEOUT_S * NS_PER_S,
		.poll = -1,
	};
	pending_count++;
	children++;
	if (begin(pending, sandbox, &told))
		finish(pending, false, &told);
}

/* Kill an init that nobody will own; what is to be told of it stays in *outgoing*. */
static void undo(const struct pending *pending)
{
	struct pollfd end = {.fd = pending->pidfd, .events = POLLIN};

	send_signal(pending->pidfd, SIGKILL);
	poll(&end, 1, KILL_TIMEOUT_MS);
	children_reap();
}

/*
 * End a creation: hand init over if it was *made*; else tell *failure*, or nothing if that is NULL
 * and init has told nothing itself.
 */
static void finish(struct pending *pending, bool made, const struct failure *failure)
{
	struct pending ended = *pending;
	int fds[] = {ended.pidfd, ended.network};
	bool owned = false;

	pending->control = -1;
	pending_count--;
	if (made) {
		text_open(&outgoing);
		put_bool(&outgoing, "ok", true);
		put_integer(&outgoing, "pid", ended.pid);
		text_close(&outgoing);
		owned = answer(ended.client, &outgoing, fds, ended.network < 0 ? 1 : 2);
		if (failpoint("launcher.answered", &(struct failure){.step = "answer"}))
			_exit(1);
	}
	if (!owned)
		undo(&ended);
	if (failure)
		answer_failure(ended.client, failure);
	close(ended.control);
	close(ended.pidfd);
	close_fd(&ended.network);
}

/* Init has told how its set-up went: {"ok":true}, or its failure, which goes on as it is. */
static void init_answers(struct pending *pending)
{
	static const char ok[] = "{\"ok\":true}";
	struct client *client = pending->client;
	struct failure failure = {.step = "init"};
	struct text told;
	ssize_t got = recv(pending->control, told.data, sizeof(told.data) - 1, MSG_DONTWAIT);

	if (got < 0 && errno == ECONNRESET)
		/* It has not read all of ours. What it said before comes next. */
		got = recv(pending->control, told.data, sizeof(told.data) - 1, MSG_DONTWAIT);
	if (failpoint("launcher.built", &failure)) {
		finish(pending, false, &failure);
	} else if (got <= 0) {
		fail(&failure, ESRCH, NULL, "init ended without a word");
		finish(pending, false, &failure);
	} else if (got == sizeof(ok) - 1 && !memcmp(told.data, ok, sizeof(ok) - 1)) {
		finish(pending, true, NULL);
	} else {
		told.length = (size_t)got;
		finish(pending, false, NULL);
		answer(client, &told, NULL, 0);
	}
}

void creations_expire(void)
{
	int64_t now = now_ns(CLOCK_MONOTONIC);
	struct failure failure = {.step = "init"};

	fail(&failure, ETIMEDOUT, NULL, "init has not answered for 30 s");
	for (size_t i = 0; i < MAX_PENDING && pending_count; i++)
		if (pendings[i].control >= 0 && pendings[i].deadline_ns < now)
			finish(&pendings[i], false, &failure);
}

/* Nobody will own what *client* has asked for. */
void creations_give_up(const struct client *client)
{
	for (size_t i = 0; i < MAX_PENDING && pending_count; i++)
		if (pendings[i].control >= 0 && pendings[i].client == client)
			finish(&pendings[i], false, NULL);
}

void creations_begin(void)
{
	for (size_t i = 0; i < MAX_PENDING; i++)
		pendings[i].control = -1;
}

size_t creations_pending(void)
{
	return pending_count;
}

void creations_watch(void)
{
	for (size_t i = 0; i < MAX_PENDING && pending_count; i++)
		if (pendings[i].control >= 0)
			pendings[i].poll = watch(pendings[i].control);
}

void creations_turn(void)
{
	for (size_t i = 0; i < MAX_PENDING && pending_count; i++)
		if (pendings[i].control >= 0 && due(pendings[i].poll))
			init_answers(&pendings[i]);
}
