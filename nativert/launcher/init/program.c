/* What is to be started, read from a message before anything is made. */
#include "init.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
/* (uid_t)-1 would leave the id as it is: host root. */
#define MAX_ID (UINT32_MAX - 1LL)

static const char *const fields[] = {"argv",   "env",	"cwd",	   "uid",	  "gid",
				     "groups", "umask", "rlimits", "oom_score_adj"};

static const struct {
	const char *name;
	int number;
} resources[] = {
	{"as", RLIMIT_AS},
	{"core", RLIMIT_CORE},
	{"cpu", RLIMIT_CPU},
	{"data", RLIMIT_DATA},
	{"fsize", RLIMIT_FSIZE},
	{"memlock", RLIMIT_MEMLOCK},
	{"msgqueue", RLIMIT_MSGQUEUE},
	{"nice", RLIMIT_NICE},
	{"nofile", RLIMIT_NOFILE},
	{"nproc", RLIMIT_NPROC},
	{"rss", RLIMIT_RSS},
	{"rtprio", RLIMIT_RTPRIO},
	{"rttime", RLIMIT_RTTIME},
	{"sigpending", RLIMIT_SIGPENDING},
	{"stack", RLIMIT_STACK},
};

static int no_memory(struct failure *failure)
{
	return fail(failure, ENOMEM, NULL, NULL);
}

static int read_argv(struct program *program, const struct json *list, struct failure *failure)
{
	const struct json *at;

	if (!list || list->kind != JSON_LIST || !list->entries)
		return fail(failure, 0, NULL, "program: argv is not a list of names");
	program->argv = calloc(list->entries + 1UL, sizeof(*program->argv));
	if (!program->argv)
		return no_memory(failure);
	at = list + 1;
	for (uint32_t i = 0; i < list->entries; i++, at = json_next(at)) {
		if (at->kind != JSON_TEXT)
			return fail(failure, 0, NULL, "program: argv has what is no argument");
		/* execve(2) takes pointers to char for no reason but age. */
		program->argv[i] = (char *)at->text;
	}
	return 0;
}

static int read_env(struct program *program, const struct json *object, struct failure *failure)
{
	const struct json *at;
	size_t bytes = 0;
	char *to;

	if (!object || object->kind != JSON_OBJECT)
		return fail(failure, 0, NULL, "program: env is not an object");
	at = object + 1;
	for (uint32_t i = 0; i < object->entries; i++, at = json_next(at + 1)) {
		if (at->kind != JSON_TEXT || !at->text[0] || strchr(at->text, '='))
			return fail(failure, 0, NULL, "program: env has what is no name");
		if (at[1].kind != JSON_TEXT)
			return fail(failure, 0, NULL, "program: env has what is no value");
		bytes += strlen(at->text) + strlen(at[1].text) + 2;
	}
	program->env = calloc(object->entries + 1UL, sizeof(*program->env));
	program->env_text = to = malloc(bytes + 1);
	if (!program->env || !to)
		return no_memory(failure);
	program->path = DEFAULT_PATH;
	at = object + 1;
	for (uint32_t i = 0; i < object->entries; i++, at = json_next(at + 1)) {
		program->env[i] = to;
		to = stpcpy(to, at->text);
		*to++ = '=';
		if (!strcmp(at->text, "PATH"))
			program->path = to;
		to = stpcpy(to, at[1].text) + 1;
	}
	return 0;
}

static int read_groups(struct program *program, const struct json *list, struct failure *failure)
{
	const struct json *at;

	if (!list || list->kind != JSON_LIST || list->entries > NGROUPS_MAX)
		return fail(failure, 0, NULL, "program: groups is not a list of ids");
	program->groups = calloc(list->entries + 1UL, sizeof(*program->groups));
	if (!program->groups)
		return no_memory(failure);
	at = list + 1;
	for (uint32_t i = 0; i < list->entries; i++, at = json_next(at)) {
		if (at->kind != JSON_INTEGER || at->integer < 0 || at->integer > MAX_ID)
			return fail(failure, 0, NULL, "program: groups has what is no id");
		program->groups[i] = (gid_t)at->integer;
	}
	program->group_count = list->entries;
	return 0;
}

static bool read_limit(struct limit *limit, const char *name, const struct json *pair)
{
	const struct json *soft, *hard;

	if (pair->kind != JSON_LIST || pair->entries != 2)
		return false;
	soft = pair + 1;
	hard = json_next(soft);
	if (soft->kind != JSON_INTEGER || hard->kind != JSON_INTEGER || soft->integer < -1 ||
	    hard->integer < -1)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(resources); i++) {
		if (strcmp(name, resources[i].name))
			continue;
		/* -1 is unlimited, there as here. */
		*limit = (struct limit){
			.name = resources[i].name,
			.resource = resources[i].number,
			.value = {(rlim_t)soft->integer, (rlim_t)hard->integer},
		};
		return true;
	}
	return false;
}

static int read_limits(struct program *program, const struct json *object, struct failure *failure)
{
	const struct json *at;

	if (!object || object->kind != JSON_OBJECT || object->entries > MAX_LIMITS)
		return fail(failure, 0, NULL, "program: rlimits is not an object of limits");
	at = object + 1;
	for (uint32_t i = 0; i < object->entries; i++, at = json_next(at + 1)) {
		if (at->kind != JSON_TEXT ||
		    !read_limit(&program->limits[program->limit_count], at->text, at + 1))
			return fail(failure, 0, at->kind == JSON_TEXT ? at->text : NULL,
				    "program: no limit that this kernel has, or not [soft, hard]");
		program->limit_count++;
	}
	return 0;
}

static int read_numbers(struct program *program, const struct json *message,
			struct failure *failure)
{
	int64_t number;

	if (!json_integer(message, "uid", 0, MAX_ID, &number))
		return fail(failure, 0, NULL, "program: uid is no id");
	program->uid = (uid_t)number;
	if (!json_integer(message, "gid", 0, MAX_ID, &number))
		return fail(failure, 0, NULL, "program: gid is no id");
	program->gid = (gid_t)number;
	if (!json_integer(message, "umask", 0, 0777, &number))
		return fail(failure, 0, NULL, "program: umask is none");
	program->umask = (mode_t)number;
	if (!json_integer(message, "oom_score_adj", INT_MIN, INT_MAX, &number))
		return fail(failure, 0, NULL, "program: oom_score_adj is no number");
	program->oom_score_adj = (int)number;
	return 0;
}

static int check_fields(const struct json *message, struct failure *failure)
{
	const struct json *at;

	if (!message || message->kind != JSON_OBJECT)
		return fail(failure, 0, NULL, "program is not an object");
	at = message + 1;
	for (uint32_t i = 0; i < message->entries; i++, at = json_next(at + 1)) {
		size_t field = 0;

		while (field < ARRAY_SIZE(fields) &&
		       (at->kind != JSON_TEXT || strcmp(at->text, fields[field])))
			field++;
		if (field == ARRAY_SIZE(fields))
			return fail(failure, 0, NULL, "program has a field that is not known");
	}
	return 0;
}

/* Its text belongs to *message*; what was allocated is for program_free, after a failure too. */
int program_read(struct program *program, const struct json *message, struct failure *failure)
{
	*program = (struct program){0};
	if (check_fields(message, failure) ||
	    read_argv(program, json_get(message, "argv"), failure) ||
	    read_env(program, json_get(message, "env"), failure) ||
	    read_groups(program, json_get(message, "groups"), failure) ||
	    read_limits(program, json_get(message, "rlimits"), failure) ||
	    read_numbers(program, message, failure))
		return -1;
	program->cwd = json_text(message, "cwd");
	if (!program->cwd)
		return fail(failure, 0, NULL, "program: cwd is no name");
	/* Here, while there is memory: under a small RLIMIT_AS the child may get none. */
	program->candidate = malloc(strlen(program->path) + strlen(program->argv[0]) + 3);
	if (!program->candidate)
		return no_memory(failure);
	return 0;
}

void program_free(struct program *program)
{
	free(program->argv);
	free(program->env);
	free(program->env_text);
	free(program->candidate);
	free(program->groups);
	*program = (struct program){0};
}
