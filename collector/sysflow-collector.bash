# Completion of sysflow-collector for bash.
_sysflow_collector() {
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
	local words paths=
	case $previous in
		--config|--sf|--ca)
			mapfile -t COMPREPLY < <(compgen -f -- "$current")
			return
			;;
	esac
	if [[ $previous == --kind ]]; then
		mapfile -t COMPREPLY < <(compgen -W "PE PF FE FF NE NF KE SUM" -- "$current")
		return
	fi
	case ${COMP_WORDS[1]} in
		serve)
			words="--config --help"
			;;
		print)
			words="--json --process --since --until --kind --help" paths=yes
			;;
		ledger)
			words="--json --ca --help" paths=yes
			;;
		export)
			words="--sf --help" paths=yes
			;;
		*)
			words="serve print ledger export --help --version"
			;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
	if [[ -n $paths && $current != -* ]]; then
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
	fi
}
complete -o filenames -F _sysflow_collector sysflow-collector
