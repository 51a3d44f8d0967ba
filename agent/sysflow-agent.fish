# Completion of sysflow-agent for fish.
set -l commands run check status spool capture

complete -c sysflow-agent -f
complete -c sysflow-agent -n "not __fish_seen_subcommand_from $commands" -a run -d 'Watch, spool and deliver'
complete -c sysflow-agent -n "not __fish_seen_subcommand_from $commands" -a check -d 'Say what keeps run from working'
complete -c sysflow-agent -n "not __fish_seen_subcommand_from $commands" -a status -d 'Print what the running agent says'
complete -c sysflow-agent -n "not __fish_seen_subcommand_from $commands" -a spool -d 'What waits for delivery'
complete -c sysflow-agent -n "not __fish_seen_subcommand_from $commands" -a capture -d 'Watch without a collector'
complete -c sysflow-agent -s h -l help -d 'Print a summary'
complete -c sysflow-agent -s V -l version -d 'Print the version'
complete -c sysflow-agent -n '__fish_seen_subcommand_from run check status spool' -l config -r -F -d 'Configuration'
complete -c sysflow-agent -n '__fish_seen_subcommand_from capture' -l for -x -d 'How long, in seconds'
complete -c sysflow-agent -n '__fish_seen_subcommand_from capture' -l out -x -a '(__fish_complete_directories)' -d 'Folder for frames'
complete -c sysflow-agent -n '__fish_seen_subcommand_from spool; and not __fish_seen_subcommand_from list purge' -a 'list purge'
complete -c sysflow-agent -n '__fish_seen_subcommand_from list' -l json -d 'As JSON'
complete -c sysflow-agent -n '__fish_seen_subcommand_from purge' -l yes -d 'Really throw away'
