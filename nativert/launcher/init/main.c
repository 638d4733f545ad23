/* From exec to the loop: what launcher/server.py has prepared is taken over, and its starter told. */
#include "launcher.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

/* For scripts/build_init.py: what this program was made from. */
__attribute__((used)) const char source_digest[] = "nativert-init-source:" SOURCE_DIGEST;

/* A descriptor that the configuration names, or -1 where it has null. */
static int descriptor(const struct json *config, const char *key)
{
	int64_t number = -1;

	if (json_integer(config, key, STDERR_FILENO + 1, INT32_MAX, &number))
		cloexec((int)number);
	return (int)number;
}

static int take_init_tasks(const struct json *tasks, struct failure *failure)
{
	const struct json *at = tasks ? tasks + 1 : NULL;

	if (!tasks || tasks->kind != JSON_LIST || tasks->entries > MAX_INIT_TASKS)
		return fail(failure, EINVAL, NULL, "no list of init's cgroups");
	for (uint32_t i = 0; i < tasks->entries; i++, at = json_next(at)) {
		if (at->kind != JSON_INTEGER)
			return fail(failure, EINVAL, NULL, "a cgroup that is no descriptor");
		cloexec((int)at->integer);
		launcher.init_tasks[launcher.init_task_count++] = (int)at->integer;
	}
	return 0;
}

static int take_over(const struct json *config, struct failure *failure)
{
	const char *version = json_text(config, "version");
	const char *boot_id = json_text(config, "boot_id");
	const char *rlimits = json_text(config, "rlimits");
	const char *failpoints = json_text(config, "failpoints");
	int64_t idle_ms, last_capability;

	if (!version || !boot_id || !rlimits || !failpoints ||
	    !json_integer(config, "idle_ms", 0, INT32_MAX, &idle_ms) ||
	    !json_integer(config, "last_capability", 0, 63, &last_capability))
		return fail(failure, EINVAL, NULL, "a configuration of another version");
	self.version = strdup(version);
	self.boot_id = strdup(boot_id);
	self.around.last_capability = (int)last_capability;
	launcher.rlimits = strdup(rlimits);
	launcher.failpoints = strdup(failpoints);
	launcher.idle_ms = (int)idle_ms;
	launcher.run = descriptor(config, "run");
	launcher.listener = descriptor(config, "listener");
	launcher.lock = descriptor(config, "lock");
	launcher.init_cgroup = descriptor(config, "init_cgroup");
	may_set_attributes = json_true(config, "mount_setattr");
	if (!self.version || !self.boot_id || !launcher.rlimits || !launcher.failpoints)
		return fail(failure, ENOMEM, NULL, NULL);
	if (launcher.run < 0 || launcher.listener < 0 || launcher.lock < 0)
		return fail(failure, EINVAL, NULL, "a descriptor is missing");
	return take_init_tasks(json_get(config, "init_tasks"), failure);
}

static int take_signals(struct failure *failure)
{
	sigset_t set;

	/* What a Python ignores, such as SIGPIPE, stays ignored over exec, and over our child's. */
	for (int number = 1; number <= SIGRTMAX; number++)
		signal(number, SIG_DFL);
	sigfillset(&set);
	sigprocmask(SIG_SETMASK, &set, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	launcher.signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	return launcher.signals < 0 ? fail(failure, errno, "signalfd", NULL) : 0;
}

/* Take *fd* over; return the descriptor of who is told, or -1. */
static int begin(int fd, struct failure *failure)
{
	struct json *config;
	size_t length = 0;
	char *data = slurp(fd, &length);
	int starter;

	if (!data)
		return fail(failure, errno, "configuration", NULL);
	config = json_parse(data, length);
	starter = config ? descriptor(config, "starter") : -1;
	if (!config || starter < 0)
		fail(failure, EINVAL, NULL, "no configuration");
	else if (!take_over(config, failure))
		take_signals(failure);
	free(config);
	free(data);
	return starter;
}

/* The arguments: name, number of the configuration's descriptor, room for the names of inits. */
int main(int argc, char **argv)
{
	struct failure failure = {.step = "launcher"};
	int starter;

	/* First: /proc entries stay host root's, and no ptrace. exec has undone what was before. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (argc != 3)
		return 2;
	starter = begin(atoi(argv[1]), &failure);
	launcher.name = argv[0];
	launcher.name_room = (size_t)(argv[2] + strlen(argv[2]) + 1 - argv[0]);
	name_process("nativert-launcher");
	text_open(&outgoing);
	if (failure.text)
		put_failure(&outgoing, &failure);
	else
		put_bool(&outgoing, "ok", true);
	text_close(&outgoing);
	packet_send(starter, &outgoing, NULL, 0);
	close(starter);
	if (failure.text)
		return 1;
	serve();
}
