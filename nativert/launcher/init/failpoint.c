/*
 * Named points at step boundaries, at which a test makes the launcher fail.
 *
 * launcher/failpoints.py has their names, and arms those of the start, which is Python.
 */
#include "launcher.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static const struct {
	const char *action;
	int signal, number;
} actions[] = {
	{"kill", SIGKILL, 0}, {"stop", SIGSTOP, 0},	{"enospc", 0, ENOSPC},
	{"eio", 0, EIO},      {"raise", 0, 0},
};

/* Fail here if the point *name* is armed, once. */
int failpoint(const char *name, struct failure *failure)
{
	size_t length = strlen(name);
	char *at = launcher.failpoints;

	if (!at || !*at)
		return 0;
	/* name=action,name=action */
	while (strncmp(at, name, length) || at[length] != '=') {
		at = strchr(at, ',');
		if (!at)
			return 0;
		at++;
	}
	at[0] = '!'; /* The name is no more. */
	at += length + 1;
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++) {
		size_t word = strlen(actions[i].action);

		if (strncmp(at, actions[i].action, word) || (at[word] && at[word] != ','))
			continue;
		if (actions[i].signal) {
			kill(getpid(), actions[i].signal);
			return 0;
		}
		return fail(failure, actions[i].number, NULL, "failpoint");
	}
	return 0;
}
